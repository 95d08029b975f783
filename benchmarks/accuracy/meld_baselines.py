"""scikit-learn on the folds of MELD's development split: words by term counts or by the text
encoder, voice, and their averages.

Words are trained on the training split and the pool, voice on the pool alone, as raysere's members
are. C is chosen by the inner folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.baselines import Point, Scored, nested, standard
from benchmarks.accuracy.data import Data, folder

TERM_COSTS = (0.3, 1.0, 3.0)
DENSE_COSTS = (1e-3, 1e-2, 1e-1)
SYSTEMS = {
    "tfidf": "tf-idf, logistic regression",
    "sentence": "sentence embedding, logistic regression",
    "voice": "voice, logistic regression",
    "tfidf+voice": "average of tf-idf and voice",
    "sentence+voice": "average of sentence embedding and voice",
}


@dataclass
class Logistic:
    """Logistic regression with classes weighed equally, trained on rows of ``x`` or of tf-idf of
    ``texts``, and on ``always`` beside.

    Attributes:
        label: int (R,) of all rows. x: (R, D), NaN rows where there are no features; None with
            ``texts``.
        always: numbers of rows that are trained on in every fold.
    """

    label: np.ndarray
    classes: int
    costs: Sequence[float]
    x: np.ndarray | None = None
    texts: Sequence[str] | None = None
    always: np.ndarray | None = None

    def scores(self, train: np.ndarray, test: np.ndarray, only: Point | None = None) -> Iterator[tuple[Point, np.ndarray]]:
        """Log-probabilities; a row without features has those of the classes in training."""
        from sklearn.linear_model import LogisticRegression

        rows = train if self.always is None else np.concatenate([train, self.always])
        here = np.ones(len(test), bool)
        if self.texts is not None:
            from sklearn.feature_extraction.text import TfidfVectorizer

            terms = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
            seen, asked = terms.fit_transform([self.texts[row] for row in rows]), terms.transform([self.texts[row] for row in test])
        else:
            assert self.x is not None
            rows, here = rows[np.isfinite(self.x[rows]).all(1)], np.isfinite(self.x[test]).all(1)
            seen, asked = standard(self.x[rows], self.x[rows]), standard(self.x[test[here]], self.x[rows])
        shares = np.bincount(self.label[rows], minlength=self.classes) / len(rows)
        for cost in self.costs:
            if only in (None, (cost,)):
                model = LogisticRegression(C=cost, class_weight="balanced", max_iter=300).fit(seen, self.label[rows])
                scores = np.tile(np.log(shares), (len(test), 1))
                scores[here] = model.predict_log_proba(asked)
                yield (cost,), scores


def fuse(words: Scored, voice: Scored, here: np.ndarray) -> Scored:
    """Mean of the probabilities; of the words alone where ``here`` (N,) says that there is no
    voice.
    """
    mixed = np.log((np.exp(words.test) + np.exp(voice.test)) / 2)
    return Scored(np.where(here[:, None], mixed, words.test), words.inner, [])


def path_of(system: str) -> Path:
    return folder("meld-baselines") / f"{system}.npz"


def run_all(data: Data, label: np.ndarray, texts: list[str]) -> None:
    """Do what is not done yet."""
    from benchmarks.accuracy.meld_data import vectors

    count = len(data.label)
    always = np.arange(count, len(label))
    voice = voices(data.utterances, *vectors(_corpus()))
    families: dict[str, Any] = {
        "voice": lambda: Logistic(label, len(data.classes), DENSE_COSTS, x=voice),
        "tfidf": lambda: Logistic(label, len(data.classes), TERM_COSTS, texts=texts, always=always),
        "sentence": lambda: Logistic(label, len(data.classes), DENSE_COSTS, x=embeddings(data), always=always),
    }
    for system, family in families.items():
        if not path_of(system).is_file():
            _keep(system, nested(family(), data, metric="macro_f1"))
    here = np.isfinite(voice).all(1)
    for words in ("tfidf", "sentence"):
        _keep(f"{words}+voice", fuse(_read(words), _read("voice"), here))


def voices(utterances: Sequence[str], ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """float64 (N, 768) in the order of ``utterances`` (``meld/ID``); NaN rows where the table has
    none.
    """
    place = {str(one): row for row, one in enumerate(ids)}
    result = np.full((len(utterances), table.shape[1]), np.nan)
    for row, utterance in enumerate(utterances):
        if (at := place.get(utterance.partition("/")[2])) is not None:
            result[row] = table[at]
    return result


def embeddings(data: Data) -> np.ndarray:
    """float64 (R, 384): the mean over tokens of the encoder's last layer, of the development rows
    and then of the training split.
    """
    from benchmarks.accuracy.meld_data import experiment
    from raysere.ensemble.data.run_labels import Run
    from raysere.features.spec import FeatureConfig, resolve
    from raysere.features.store.store import FeatureStore

    opened = Run.open(folder("runs") / "meld-text")
    used = opened.manifest.used_by(opened.splits)
    spec = resolve(FeatureConfig.model_validate(experiment("text")["features"]["words"]))
    table = FeatureStore(folder("features")).open(spec, used).matrix(spec.numbers[-1]).astype(np.float64)
    scored = {utterance: row for row, utterance in enumerate(data.utterances)}
    names = used.table["utterance"].to_list()
    first = sorted((row for row, name in enumerate(names) if name in scored), key=lambda row: scored[names[row]])
    return table[first + [row for row, name in enumerate(names) if name not in scored], : table.shape[1] // 2]


def _corpus() -> Path:
    import os

    return Path(os.environ["RAYSERE_CORPORA"]) / "meld"


def _keep(system: str, scored: Scored) -> None:
    temporary = path_of(system).with_suffix(".part.npz")
    np.savez(temporary, test=scored.test, inner=scored.inner)
    temporary.rename(path_of(system))
    print(f"{system}: {scored.chosen}", flush=True)


def _read(system: str) -> Scored:
    with np.load(path_of(system)) as kept:
        return Scored(kept["test"], kept["inner"], [])


def read_all() -> dict[str, Scored]:
    """All systems. Raises FileNotFoundError where one is not done."""
    return {system: _read(system) for system in SYSTEMS}
