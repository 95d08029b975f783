"""Event files, read back with TensorBoard's own readers."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from test_search_ledger import put
from toy import CLASSES, toy_run, toy_study

from raysere.search.ledger import Ledger, Record
from raysere.search.watch.live import tag
from raysere.search.watch.tensorboard import TrialEvents, confusion_image, hparams


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("events"))


def with_predictions(record: Record, run_dir: Path) -> np.ndarray:
    """Predictions that are right for two classes and take the third for the first; returns the
    confusion matrix.
    """
    table = pl.read_parquet(run_dir / "manifest.parquet").select("utterance", "emotion")
    said = ["anger" if label == "sadness" else label for label in table["emotion"].to_list()]
    frame = pl.DataFrame(
        {
            "utterance": table["utterance"],
            "fold": [0] * len(table),
            "split": ["dev"] * len(table),
            **{f"p.{name}": [0.8 if label == name else 0.1 for label in said] for name in CLASSES},
        }
    )
    frame.write_parquet(record.folder / "predictions.parquet")
    return np.array([[24, 0, 0], [0, 24, 0], [24, 0, 0]])


def test_scalars_hparams_and_confusion_come_back(run_dir: Path) -> None:
    study = toy_study()
    record = put(Ledger(run_dir), study, 0, {"lr": 0.1, "layers": "mix", "flag": True, "absent": None, "list": [1, 2]})
    expected = with_predictions(record, run_dir)
    events = TrialEvents(run_dir)
    assert not events.has(record)
    events.write(record, study)
    assert events.has(record)
    assert np.array_equal(events._confusion(record, study), expected)
    folder = run_dir / "search" / "toy" / "toy-0000"
    assert [path.name[:20] for path in folder.iterdir()] == ["events.out.tfevents."]
    assert not list(folder.parent.glob(".*"))
    back = read(folder)
    assert [(event.step, round(event.value, 6)) for event in back.Scalars("dev/score")] == [(0, 0.1), (1, 0.5), (2, 0.4)]
    assert [event.value for event in back.Scalars("best/score")] == [0.5]
    start = metadata.parse_session_start_info_plugin_data(back.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content)
    assert {name: value.WhichOneof("kind") for name, value in start.hparams.items()} == {
        "study": "string_value",
        "method": "string_value",
        "features": "string_value",
        "lr": "number_value",
        "layers": "string_value",
        "flag": "bool_value",
        "list": "string_value",
    }
    assert start.hparams["lr"].number_value == 0.1
    assert start.group_name == "toy-0000"
    end = metadata.parse_session_end_info_plugin_data(back.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content)
    assert end.status == 1
    picture = back.Images("confusion")[0]
    image = Image.open(io.BytesIO(picture.encoded_image_string))
    assert picture.step == 1
    assert image.size == (picture.width, picture.height)


def test_the_hparams_page_lists_the_trials(run_dir: Path) -> None:
    """Through the plugin's own backend, as the page asks it."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    study = toy_study()
    events = TrialEvents(run_dir)
    for number in (5, 6):
        events.write(put(Ledger(run_dir), study, number, {"lr": 0.1 * number, **({"layer": 1} if number == 5 else {})}), study)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(run_dir / "search"))
    multiplexer.Reload()
    backend = backend_context.Context(base_plugin.TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(run_dir / "search"))))
    context = RequestContext()
    experiment = get_experiment.Handler(context, backend, "", api_pb2.GetExperimentRequest()).run()
    names = {info.name for info in experiment.hparam_infos}
    assert {"lr", "layer", "study"} <= names
    assert "best/score" in {info.name.tag for info in experiment.metric_infos}
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS])
    answer = list_session_groups.Handler(context, backend, "", request).run()
    groups = {group.name: {name: value.number_value for name, value in group.hparams.items()} for group in answer.session_groups}
    assert groups["toy-0005"]["layer"] == 1
    assert "layer" not in groups["toy-0006"]
    assert groups["toy-0006"]["lr"] == pytest.approx(0.6)


def test_a_failed_trial_has_events_too(run_dir: Path) -> None:
    study = toy_study()
    record = put(Ledger(run_dir), study, 1, {"lr": 0.1}, status="infeasible", score=None)
    TrialEvents(run_dir).write(record, study)
    back = read(run_dir / "search" / "toy" / "toy-0001")
    assert back.Tags()["images"] == []
    assert "best/score" not in back.Tags()["scalars"]
    assert metadata.parse_session_end_info_plugin_data(back.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content).status == 2


def test_tags_group_by_what_stands_before_the_slash() -> None:
    assert [tag(name) for name in ("train.class", "loss", "score")] == ["train/class", "loss", "dev/score"]


def test_hparams_are_plain_scalars(run_dir: Path) -> None:
    record = put(Ledger(run_dir), toy_study(), 2, {"a": 1, "b": 0.5, "c": "x", "d": False, "e": None, "f": [1]})
    assert hparams(record) == {
        "study": "toy",
        "method": "pooled",
        "features": "words",
        "a": 1.0,
        "b": 0.5,
        "c": "x",
        "d": False,
        "f": "[1]",
    }


def test_the_shade_of_a_cell_is_the_share_of_its_row() -> None:
    png, height, width = confusion_image(np.array([[10, 0], [5, 5]]), ["a", "b"])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape == (height, width, 3)
    left, top, cell = width - 16 - 2 * 56, height - 16 - 2 * 56, 56
    corner = [[pixels[top + cell * i + 4, left + cell * j + 4].astype(int) for j in range(2)] for i in range(2)]
    assert corner[0][0].sum() < corner[1][0].sum() == corner[1][1].sum() < corner[0][1].sum() >= 3 * 254


def test_long_class_names_and_many_classes_fit() -> None:
    names = [f"very long emotion {number}" for number in range(8)]
    png, height, width = confusion_image(np.eye(8, dtype=int) * 100, names)
    assert Image.open(io.BytesIO(png)).size == (width, height)
    assert width < 1000


def test_the_driver_needs_no_torch_for_it() -> None:
    modules = ", ".join(f"raysere.search.{name}" for name in ("watch.tensorboard", "leaderboard", "ledger", "space.grammar", "study"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
