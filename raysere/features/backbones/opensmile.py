"""Functionals of openSMILE, one row for each utterance:

``opensmile:eGeMAPSv02``, ``opensmile:ComParE_2016`` (extra ``opensmile``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, UnknownNameError
from raysere.base.files import digest
from raysere.features.backbone import Backbone, BackboneInfo, Item, Layer

CODE_VERSION = 1  # raise it whenever an output changes: it is part of every feature key
SETS = {"eGeMAPSv02": 88, "ComParE_2016": 6373}  # name to columns


class OpenSmile(Backbone):
    """One set of functionals.

    A value that openSMILE leaves undefined (a statistic of pitch in a clip without voice) is 0.
    """

    def __init__(self, name: str) -> None:
        self.info = self.describe(name)
        opensmile = _import()
        self._smile = opensmile.Smile(getattr(opensmile.FeatureSet, name), opensmile.FeatureLevel.Functionals)

    @staticmethod
    def describe(argument: str | None = None) -> BackboneInfo:
        """Does not need the package.

        Raises ConfigError: no set is named. UnknownNameError: no such set.
        """
        if not argument:
            raise ConfigError(
                "The backbone 'opensmile' needs a feature set after the colon", choices=[f"opensmile:{name}" for name in SETS]
            )
        if argument not in SETS:
            raise UnknownNameError("openSMILE feature set", argument, SETS)
        return BackboneInfo(
            f"opensmile:{argument}",
            "audio",
            (Layer("functionals", SETS[argument], "utterance"),),
            digest({"backbone": "opensmile", "set": argument, "code": CODE_VERSION}),
            sampling_rate=16000,
            batching="single",
            min_s=0.1,
            max_s=600.0,
            licence="openSMILE: free for research, commercial use needs a licence of audEERING",
        )

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu") -> OpenSmile:
        """Runs on the CPU whatever the device.

        Raises as :meth:`describe` does, and EnvironmentFault where the package is not installed.
        """
        return OpenSmile(OpenSmile.describe(argument).name.partition(":")[2])

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`.

        Raises DataError: no audio, or openSMILE makes nothing of it. ConfigError: no such layer.
        """
        if any(layer != 0 for layer in layers):
            raise ConfigError(f"The backbone {self.info.name!r} has one layer", choices=[0])
        result = []
        for item in items:
            row = self._row(item)
            result.append([row.copy() for _ in layers])
        return result

    def _row(self, item: Item) -> np.ndarray:
        if item.wave is None or len(item.wave) == 0:
            raise DataError("no audio for this utterance", where=item.utterance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a short clip and answers NaN, which is refused below
            row = np.asarray(self._smile(np.asarray(item.wave, dtype=np.float32), 16000), dtype=np.float32).reshape(1, -1)
        if row.shape[1] != self.info.layers[0].dim or np.isnan(row).all():
            raise DataError("openSMILE makes no functionals of this clip", where=item.utterance)
        return np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0)


def _import() -> Any:
    try:
        import opensmile
    except ImportError as error:
        raise EnvironmentFault(
            "The package opensmile is not installed", remedy="Install it with: pip install 'raysere[opensmile]'."
        ) from error
    return opensmile
