"""Normalisation of features inside a fold: z-norm by corpus or by speaker, tf-idf for term counts.
State is tensors.

What is fitted, and on which rows:

* ``corpus``: mean and standard deviation of each corpus's own training rows; a corpus without
  enough of them, or one that is not known at inference, takes those of all training rows.
* ``speaker``: mean and standard deviation of each speaker's own rows, those of development and test
  speakers included. No label is read, yet it is **transductive for those speakers**: a prediction
  for one clip depends on their other clips. :attr:`Normaliser.transductive` says so, and the
  trial's description repeats it. A speaker with few rows, and at inference a batch with few, takes
  the statistics of all training rows; an unknown speaker's batch takes its own.
* ``tfidf`` (streams of kind ``counts``, whatever ``normalise`` says): smoothed idf of the training
  rows, then rows of length :data:`TFIDF_LENGTH`.

Values are held to +-:data:`LIMIT` standard deviations; a value that is constant in its statistics
becomes 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raysere.base.errors import DataError

if TYPE_CHECKING:
    from raysere.features.views import FeatureView

LIMIT = 10.0
FITTED = {"domain": "corpus"}  # statistics by corpus, the unlabelled clips of a target corpus included
TFIDF_LENGTH = 10.0  # l2 norm of a tf-idf row: of the order of a z-normed row, so that one learning rate serves both
MIN_OWN_ROWS = 8  # feature rows (utterances, chunks or frames) below which a group's own statistics are not trusted


_NOTHING = torch.empty(0)


@dataclass
class Normaliser:
    """Normalises rows of one stream whose asked layers stand side by side, W columns in all.

    Attributes:
        kind: none, corpus, speaker or tfidf.
        columns: (start, stop) of each layer in W.
        mean, scale: float32 (G + 1, W), one row a group, the last for everything else; idf: float32
            (W,); empty where the kind has none.
        group: int64 (N,) row of ``mean`` for each row of the labels.
        names: names of the G groups (corpora).
        shared: whether the statistics do not depend on the fold, so that one normalised copy serves
            all folds.
    """

    kind: str
    columns: dict[int, tuple[int, int]]
    mean: Tensor = _NOTHING
    scale: Tensor = _NOTHING
    idf: Tensor = _NOTHING
    group: Tensor | None = None
    names: list[str] = field(default_factory=list)
    shared: bool = False

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on other, unlabelled rows of the same development or test
        speaker.
        """
        return self.kind == "speaker"

    def to(self, device: torch.device | str) -> Normaliser:
        for name in ("mean", "scale", "idf", "group"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(device))
        return self

    def apply_(self, x: Tensor, group: Tensor | None, layer: int | None = None) -> Tensor:
        """Normalise in place and return ``x``: (B, W) of all layers, or (B, T, D) of one ``layer``.

        ``group`` int64 (B,) is the row of the statistics; None for the last one.
        """
        start, stop = self.columns[layer] if layer is not None else (0, x.shape[-1])
        if self.kind == "tfidf":
            x *= self.idf[start:stop]
            for first, last in self.columns.values() if layer is None else [(0, stop - start)]:
                part = x[..., first:last]
                part *= TFIDF_LENGTH / part.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            return x
        if self.kind == "none":
            return x
        mean, scale = self.mean[:, start:stop], self.scale[:, start:stop]
        if group is None or len(mean) == 1:
            return x.sub_(mean[-1]).mul_(scale[-1]).clamp_(-LIMIT, LIMIT)
        for begin in range(0, len(x), 4096):  # in blocks: the gathered statistics are as large as the values
            part, own = x[begin : begin + 4096], group[begin : begin + 4096]
            own_mean, own_scale = (mean[own], scale[own]) if x.dim() == 2 else (mean[own].unsqueeze(1), scale[own].unsqueeze(1))
            part.sub_(own_mean).mul_(own_scale).clamp_(-LIMIT, LIMIT)
        return x

    # ---- state

    def state(self) -> dict[str, Tensor]:
        """Tensors to save: what inference on new utterances needs (no training speaker's
        statistics).
        """
        if self.kind == "tfidf":
            return {"idf": self.idf.cpu()}
        if self.kind == "none":
            return {}
        kept = slice(None) if self.kind == "corpus" else slice(-1, None)
        result = {"mean": self.mean[kept].cpu().contiguous(), "scale": self.scale[kept].cpu().contiguous()}
        if self.kind == "corpus" and self.names:
            result["corpora"] = torch.tensor(list(json.dumps(self.names).encode()), dtype=torch.uint8)
        return result

    @classmethod
    def from_state(cls, kind: str, columns: dict[int, tuple[int, int]], state: dict[str, Tensor]) -> Normaliser:
        """What :meth:`state` gave, ready for utterances that training did not see."""
        names = json.loads(bytes(state["corpora"].tolist())) if "corpora" in state else []
        return cls(kind, columns, state.get("mean", _NOTHING), state.get("scale", _NOTHING), state.get("idf", _NOTHING), None, names)

    def groups_of(self, corpora: list[str] | None, rows: int) -> Tensor:
        """Row of ``mean`` for each of ``rows`` new utterances by the name of their corpus; the last
        row where it is not known.
        """
        known = {name: number for number, name in enumerate(self.names)}
        return torch.tensor([known.get(name, len(self.names)) for name in (corpora or [""] * rows)], dtype=torch.long)


def columns_of(widths: dict[int, int]) -> dict[int, tuple[int, int]]:
    """(start, stop) of each layer when layers stand side by side in the order of ``widths``."""
    stops = np.cumsum(list(widths.values())).tolist()
    return {layer: (stop - width, stop) for (layer, width), stop in zip(widths.items(), stops, strict=True)}


# ---- fitting -------------------------------------------------------------------------------------


def fit(
    kind: str,
    view: FeatureView,
    columns: dict[int, tuple[int, int]],
    at: np.ndarray,
    train: np.ndarray,
    seen: np.ndarray,
    *,
    corpus: np.ndarray,
    corpora: list[str],
    speaker: np.ndarray,
) -> Normaliser:
    """Fit on a fold.

    Args:
        kind: ``none``, ``corpus`` or ``speaker``; a view of kind ``counts`` always gets tf-idf.
        at: int64 (N,) row of the view for each row of the labels, -1 where absent.
        train, seen: rows of the labels: training rows of the fold, and all rows of the trial.
        corpus, speaker: int64 (N,) codes; corpora: names of the corpora.

    Raises DataError when no training row has features.
    """
    train, seen = train[at[train] >= 0], seen[at[seen] >= 0]
    if not len(train):
        raise DataError(
            "No training utterance of this fold has features", where=view.spec.backbone, remedy="See the quarantine list of the features."
        )
    if view.spec.kind == "counts":
        return Normaliser("tfidf", columns, idf=_idf(view, columns, at[train]))
    if kind == "none":
        return Normaliser("none", columns, shared=True)
    pooled = _moments(view, columns, at[train])
    if kind == "corpus":
        names = list(corpora) if len(corpora) > 1 else []  # one corpus is all training rows
        tables, group, shared = [], np.full(len(at), len(names)), False
        for code in range(len(names)):
            own = train[corpus[train] == code]
            tables.append(_moments(view, columns, at[own]) if view.lengths(at[own]).sum() >= MIN_OWN_ROWS else pooled)
            group[corpus == code] = code
    else:
        tables, group, names = *_by_speaker(view, columns, at, seen, speaker, len(at)), []
        # rows of speakers that fall back read the last table, which is the fold's own
        shared = not len(seen) or bool((group[seen] < len(tables)).all())
    mean = torch.from_numpy(np.stack([table[0] for table in [*tables, pooled]]).astype(np.float32))
    scale = torch.from_numpy(np.stack([_scale(*table) for table in [*tables, pooled]]))
    return Normaliser(kind, columns, mean, scale, _NOTHING, torch.from_numpy(group.astype(np.int64)), names, shared)


def _scale(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    varies = std > 1e-6 * np.abs(mean) + 1e-12
    return np.where(varies, 1 / np.where(varies, std, 1), 0).astype(np.float32)


def _moments(view: FeatureView, columns: dict[int, tuple[int, int]], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [view.moments(layer, rows) for layer in columns]
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([std for _, std in parts])


def _by_speaker(
    view: FeatureView, columns: dict[int, tuple[int, int]], at: np.ndarray, seen: np.ndarray, speaker: np.ndarray, total: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Moments of each speaker with enough rows among ``seen``, and the table row of every label
    row.
    """
    lengths = view.lengths(at[seen])
    counts = np.bincount(speaker[seen], weights=lengths, minlength=int(speaker.max(initial=0)) + 1)
    trusted = np.flatnonzero(counts >= MIN_OWN_ROWS)
    code = np.full(len(counts), len(trusted))
    code[trusted] = np.arange(len(trusted))
    group = np.full(total, len(trusted))
    group[seen] = code[speaker[seen]]
    if view.spec.granularity != "utterance":
        return [_moments(view, columns, at[seen[speaker[seen] == who]]) for who in trusted], group
    kept = seen[group[seen] < len(trusted)]
    codes = torch.from_numpy(group[kept])
    means, stds = [], []
    for layer in columns:  # one layer at a time: the float64 copies stay small
        mean, std = grouped_moments(torch.from_numpy(view.matrix(layer, at[kept])), codes, len(trusted))
        means.append(mean.numpy())
        stds.append(std.numpy())
    return list(zip(np.concatenate(means, 1), np.concatenate(stds, 1))), group


def grouped_moments(x: Tensor, codes: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation (G, D) in float64 of rows x (n, D) by their group code
    (n,); every group has rows.
    """
    x = x.double()
    count = torch.zeros(groups, dtype=torch.float64).index_add_(0, codes, torch.ones(len(x), dtype=torch.float64)).unsqueeze(1)
    mean = torch.zeros(groups, x.shape[1], dtype=torch.float64).index_add_(0, codes, x) / count
    squares = torch.zeros_like(mean).index_add_(0, codes, (x - mean[codes]) ** 2)
    return mean, (squares / count).sqrt()


def _idf(view: FeatureView, columns: dict[int, tuple[int, int]], rows: np.ndarray) -> Tensor:
    """``log((1 + n) / (1 + df)) + 1`` per term, df = training utterances that hold it."""
    parts = []
    for layer in columns:
        frequency = torch.zeros(view.spec.width(layer), dtype=torch.float64)
        for begin in range(0, len(rows), 4096):
            frequency += (view.batch(rows[begin : begin + 4096], [layer]).layers[layer] != 0).any(1).sum(0)
        parts.append(torch.log((1 + len(rows)) / (1 + frequency)) + 1)
    return torch.cat(parts).float()


def batch_statistics(view: FeatureView, columns: dict[int, tuple[int, int]], rows: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """Mean and scale (W,) of the given view rows themselves, for an unknown speaker; None when they
    are too few.
    """
    rows = rows[view.present[rows]]
    if view.lengths(rows).sum() < MIN_OWN_ROWS:
        return None
    mean, std = _moments(view, columns, rows)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(_scale(mean, std))
