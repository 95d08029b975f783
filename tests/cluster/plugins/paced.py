"""A backbone and a method of another package whose work can be held up, and which write down the
node that they run on.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import ray
from toy_backbone import Toy

from raysere.features.backbone import BackboneInfo
from raysere.methods.pooled import Pooled, PooledParams

ITEM_S = 0.1  # while the gate is shut; by it the sizes of tasks are reckoned


def _node() -> str:
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "none"


class Paced(Toy):
    """The toy backbone at ten items a second, until the file ``gate`` is there.

    Options: ``log``, a file that gets a line (node, process, utterance) for each item that is
    begun; without the ``gate`` a worker waits for it in the midst of its item number ``items``.
    """

    def __init__(self, info, options: dict) -> None:
        super().__init__(info, options)
        self.begun = 0

    @staticmethod
    def describe(argument: str | None = None, **options) -> BackboneInfo:
        return replace(Toy.describe(argument, **options), name="paced")

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu", **options) -> Paced:
        return Paced(Paced.describe(argument, **options), options)

    def _misbehave(self, utterance: str) -> None:
        self.begun += 1
        with open(self.options["log"], "a") as file:
            file.write(f"{_node()} {os.getpid()} {utterance}\n")
        gate = Path(self.options["gate"])
        if not gate.exists():
            time.sleep(ITEM_S)
        while self.begun >= self.options["items"] and not gate.exists():
            time.sleep(ITEM_S)


class MeetingParams(PooledParams):
    place: str = ""
    nodes: int = 1


class Meeting(Pooled):
    """``pooled``, whose trials begin to train when ``nodes`` nodes have one at work; the folder
    ``place`` gets a file for each node.
    """

    name = "meeting"
    Params = MeetingParams

    def build(self, params: MeetingParams, shapes):
        place = Path(params.place)
        (place / _node()).touch()
        while len(list(place.iterdir())) < params.nodes:
            time.sleep(ITEM_S)
        return super().build(params, shapes)
