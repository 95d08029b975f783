"""The contract of a method: how emotion is learned."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysere.features.spec import StreamShape
from raysere.training.task import Labels, Task

if TYPE_CHECKING:
    from raysere.features.views import Stream
    from raysere.training.task import TrialData


class LoopParams(BaseModel):
    """What the one loop needs of every method; a method's ``Params`` adds its own.

    Units: epochs, items a batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(1e-2, ge=0, le=10)
    batch: int = Field(64, ge=1, le=65536)
    epochs: int = Field(30, ge=1, le=10000)
    patience: int = Field(5, ge=1, description="epochs without a better development score before a trial stops itself")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = Field(1.0, gt=0)
    normalise: Literal["none", "corpus", "speaker", "domain"] = Field(
        "corpus",
        description="z-norm of features; by training rows of the corpus, by each speaker's own rows, or by training rows and the clips "
        "of a target corpus that may be adapted to (no label is read)",
    )
    sampler: Literal["natural", "balanced", "natural_then_balanced"] = "natural"
    augment: bool = Field(True, description="learn from altered copies of the training clips as well, where the features have any")


@dataclass(frozen=True)
class Shapes:
    task: Task
    streams: dict[str, StreamShape]
    train_prior: tuple[float, ...] = ()  # class shares of the training rows of this fold


@dataclass(frozen=True)
class Needs:
    granularities: frozenset[str] = frozenset({"utterance", "chunk", "frame"})
    modalities: frozenset[str] = frozenset({"audio", "text"})
    streams: int = 1  # how many feature streams at least
    partial: bool = False  # an utterance may lack some of its streams, not all: there the mask of a stream is all False
    target_domain: bool = False
    phones: bool = False
    video: bool = False
    traces: bool = False

    def usable(self, present: Iterable[np.ndarray]) -> np.ndarray:
        """Bool (N,): utterances that the method can read, from bool (N,) of each stream."""
        return (np.logical_or if self.partial else np.logical_and).reduce(list(present))


@dataclass
class Batch:
    """B utterances on the device.

    ``label`` int64 (B,), -1 none; ``soft`` (B, C) or None; ``attributes`` (B, A) in [0, 1] with NaN
    where missing, or None; ``sex`` 0 female, 1 male, -1 unknown; ``speaker`` int64 codes. In
    predictions there are no targets.
    """

    rows: Tensor
    streams: dict[str, Stream]
    label: Tensor
    soft: Tensor | None
    attributes: Tensor | None
    sex: Tensor
    speaker: Tensor
    votes: Tensor | None = None  # (B,) number of votes behind each row of ``soft``
    is_target_domain: Tensor | None = None  # bool (B,), items of the target domain; None: all are, as in predictions of new clips
    unlabelled: Batch | None = None  # as many unlabelled items of the target domain, for methods that need one


@dataclass(frozen=True)
class Step:
    """Where training stands: ``step`` of ``total`` optimiser steps, ``epoch`` from 0, and a
    generator for every random choice.

    The generator lives on the CPU, so that choices do not depend on the device.
    """

    step: int
    total: int
    epoch: int
    generator: torch.Generator


@dataclass
class Prediction:
    """``logits`` float32 (B, C) and/or ``attributes`` float32 (B, A) in [0, 1], optionally their
    ``std``.

    ``hidden`` float32 (B, H), the last features before the heads, where a method is judged by them
    (criteria without target labels).
    """

    logits: Tensor | None = None
    attributes: Tensor | None = None
    std: Tensor | None = None
    hidden: Tensor | None = None


class Feed(Protocol):
    """All items of a fold in batches, in a fixed order: of the source with targets, of the target
    domain without.
    """

    def source(self) -> Iterator[Batch]: ...

    def target(self) -> Iterator[Batch]: ...


class Pool(Protocol):
    """Makes one vector (B, ``width``) of the rows of a stream; ``key`` tells apart what gives
    different vectors of the same layers.
    """

    @property
    def width(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    def __call__(self, stream: Stream, /) -> Tensor: ...


class Method(abc.ABC):
    """A way of learning emotion from features. Stateless: all state is in the module that ``build``
    returns.

    ``Params`` is the typed, bounded configuration whose defaults are the published ones.
    """

    name: ClassVar[str]
    Params: ClassVar[type[LoopParams]]
    needs: ClassVar[Needs] = Needs()

    def check(self, params: Any, shapes: Shapes) -> None:  # noqa: B027 (a hook: accepting is the default)
        """Raise ConfigError where these params cannot work on these streams (a layer that is not
        there). Default: accept.
        """

    def layers(self, params: Any, shapes: Shapes) -> dict[str, list[int]]:
        """Which layers of each stream this configuration reads; only these are mapped.

        Default: all.
        """
        return {name: sorted(stream.layers) for name, stream in shapes.streams.items()}

    def train_rows(self, params: Any, labels: Labels, rows: np.ndarray, task: Task) -> np.ndarray:
        """Which of the training ``rows`` this configuration learns from.

        Default: those that have a target of the task.
        """
        return rows[labels.has_target(task)[rows]]

    def pools(self, params: Any, shapes: Shapes) -> Mapping[str, Pool]:
        """Streams that the module uses only as one weight-free pooled vector for each utterance,
        and how to pool each; computed once for each fold.

        The loop then computes the vectors once, not in every epoch, and gives the module streams of
        granularity ``pooled``; rows batch by batch still come in predictions of
        :mod:`raysere.training.predictor`. Default: none.
        """
        return {}

    def stacks(self, params: Any, shapes: Shapes) -> bool:
        """Whether several folds may train as one module whose parameters, batches and losses have a
        leading dimension of folds.

        Then ``losses`` and ``predict`` must also work on a module of
        :func:`raysere.nn.stacking.stack` and on batches with a leading dimension F in every tensor
        (streams (F, B, T, D) of utterance granularity), give one value for each fold (F,), take
        nothing from items without a target (short batches are padded with them), draw random
        numbers by :func:`raysere.nn.dropout.dropout` only, and not use ``step.generator``. Default:
        no.
        """
        return False

    @abc.abstractmethod
    def build(self, params: Any, shapes: Shapes) -> nn.Module:
        """The module, initialised from torch's global generator (the loop seeds it)."""

    def start(self, model: nn.Module, data: TrialData, rows: Any, seed: int) -> None:  # noqa: B027
        """Data-dependent initialisation from training ``rows`` only (k-means codebooks,
        statistics). Default: nothing.
        """

    def begin_epoch(self, model: nn.Module, feed: Feed, epoch: int, seed: int) -> None:  # noqa: B027
        """What an epoch needs to know of all items before its first step (k-means of what the model
        makes of them). Default: nothing.

        Called in eval mode without gradients, never for stacked folds.
        """

    @abc.abstractmethod
    def losses(self, model: nn.Module, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Named scalar terms; the loop adds and logs them, those whose name begins with ``_`` it
        only logs. ``model.training`` is True.
        """

    @abc.abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """Predictions of a batch; called in eval mode without gradients."""

    def effective_prior(self, params: Any, train_prior: tuple[float, ...]) -> tuple[float, ...]:
        """The class prior that the trained logits carry (docs/methods.md 1.6).

        Default: the training prior.
        """
        return train_prior


class ClosedMethod(Method):
    """A method whose weights follow from all training rows at once, without gradient steps; its
    ``Params`` hold ``epochs`` to 1.
    """

    @abc.abstractmethod
    def solve(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Set the weights from a batch of all training rows; named scalar terms at the solution.

        Without gradients and in float32.
        """
