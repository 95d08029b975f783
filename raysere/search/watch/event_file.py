"""A TensorBoard event file, written record by record without a queue or a thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class EventFile:
    """An open event file; ``path`` must have ``tfevents`` in its name, or TensorBoard passes it
    over.
    """

    def __init__(self, path: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        self._stream = path.open("xb")  # a new file: what stands there, were it a link, is not written over
        self._writer = RecordWriter(self._stream)
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def add(self, step: int, values: Sequence[Any]) -> None:
        """Write ``Summary.Value`` messages of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.write(self._event(wall_time=time.time(), step=step, summary=Summary(value=values)).SerializeToString())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of one step by tag; nothing for none."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if values:
            self.add(step, [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()])

    def restart(self) -> None:
        """Readers forget what earlier files of the same folder showed from step 0 on."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._writer.write(self._event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)).SerializeToString())

    def flush(self) -> None:
        """Let readers see what is written so far."""
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def hparams_value(tag: str, data: Any) -> Any:
    """What ``tensorboard.plugins.hparams.summary`` makes; that module wants TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata

    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=metadata.NULL_TENSOR)
