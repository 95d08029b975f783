import numpy as np
import polars as pl
import pytest

from raysere.base.errors import DataError, MissingFileError
from raysere.corpora.labels import class_map
from raysere.corpora.manifest import Manifest, rows_to_table
from raysere.training.data import build_labels, trial_data
from raysere.training.predictions import prediction_table, read_predictions
from raysere.training.task import Task

TASK = Task(kind="both", classes=("anger", "neutral"), attributes=("arousal", "valence"), scale=(1, 7))
MAP = class_map({"name": "two", "classes": ["anger", "neutral"], "rules": {"A": "anger", "N": "neutral", "X": None}})


def vote(rater, emotion, arousal=None):
    return {"rater": rater, "emotion": emotion, "arousal": arousal, "valence": None, "dominance": None}


def manifest():
    rows = [
        {
            "utterance": "c/1",
            "corpus": "c",
            "language": "en",
            "path": "1.wav",
            "speaker": "c/f",
            "sex": "female",
            "emotion": "A",
            "arousal": 5.0,
            "valence": 1.0,
        },
        {
            "utterance": "c/2",
            "corpus": "c",
            "language": "en",
            "path": "2.wav",
            "speaker": "c/m",
            "sex": "male",
            "emotion": "X",
            "votes": [vote("r1", "A", 1.0), vote("r2", "N", 3.0), vote("r3", "A"), vote("r4", "odd")],
        },
        {
            "utterance": "d/1",
            "corpus": "d",
            "language": "en",
            "path": "1.wav",
            "speaker": "d/g",
            "emotion": "N",
            "arousal": 0.5,
            "valence": -1.0,
        },
        {
            "utterance": "d/2",
            "corpus": "d",
            "language": "en",
            "transcript": "no audio",
            "path": None,
            "duration_s": None,
            "sampling_rate": None,
            "speaker": "d/g",
        },
    ]
    rows = [{"duration_s": 2.0, "sampling_rate": 16000, **row} for row in rows]
    return Manifest.checked(rows_to_table(rows), scales={"c": (1, 5), "d": (-1, 1)})


def test_labels():
    labels, dropped = build_labels(manifest(), MAP, TASK)
    assert labels.utterances == ["c/1", "c/2", "d/1", "d/2"]
    assert labels.label.tolist() == [0, -1, 1, -1]
    assert dropped == {"X": 1}
    assert labels.votes.tolist() == [0, 3, 0, 0]
    assert np.allclose(labels.soft, [[0, 0], [2 / 3, 1 / 3], [0, 0], [0, 0]])
    assert labels.sex.tolist() == [0, 1, -1, -1]
    assert [labels.speakers[code] for code in labels.speaker] == ["c/f", "c/m", "d/g", "d/g"]
    assert [labels.corpora[code] for code in labels.corpus] == ["c", "c", "d", "d"]
    assert labels.duration_s[0] == 2
    assert np.isnan(labels.duration_s[3])
    # 5 on 1..5 is 7 on 1..7; the mean vote 2 is a quarter of the way; .5 on -1..1 is three quarters
    assert np.allclose(labels.attributes, [[7, 1], [2.5, np.nan], [5.5, 1], [np.nan, np.nan]], equal_nan=True)


def test_targets_by_task():
    labels, _ = build_labels(manifest(), MAP, TASK)
    classes = TASK.model_copy(update={"kind": "categorical"})
    assert labels.has_target(classes).tolist() == [True, False, True, False]
    assert labels.has_target(classes, soft=True).tolist() == [True, True, True, False]
    assert labels.has_target(TASK).tolist() == [True, True, True, False]


def test_a_map_of_other_classes_is_refused():
    with pytest.raises(DataError, match="different classes"):
        build_labels(manifest(), MAP, TASK.model_copy(update={"classes": ("neutral", "anger")}))


def splits(rows):
    return pl.DataFrame(rows, schema={"outer": pl.Int32, "utterance": pl.String, "role": pl.String, "fold": pl.Int32}, orient="row")


def test_folds_and_test_rows():
    labels, _ = build_labels(manifest(), MAP, TASK)
    table = splits(
        [(0, "d/1", "pool", 1), (0, "c/1", "pool", 0), (0, "d/2", "pool", None), (0, "c/2", "test", None), (1, "c/1", "pool", 0)]
    )
    data = trial_data(labels, table, 0, {}, TASK)
    assert [(fold.number, fold.train.tolist(), fold.dev.tolist()) for fold in data.folds] == [(0, [2, 3], [0]), (1, [0, 3], [2])]
    assert data.test.tolist() == [1]
    shuffled = trial_data(labels, table.reverse(), 0, {}, TASK)
    assert [fold.train.tolist() for fold in shuffled.folds] == [fold.train.tolist() for fold in data.folds]


def test_development_rows_need_a_target():
    labels, _ = build_labels(manifest(), MAP, TASK)
    data = trial_data(labels, splits([(0, "c/1", "pool", 0), (0, "d/2", "pool", 0), (0, "d/1", "pool", None)]), 0, {}, TASK)
    assert data.folds[0].dev.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "outer", "message"),
    [
        ([(0, "c/1", "pool", 0)], 3, "no outer split 3"),
        ([(0, "zz", "pool", 0)], 0, "not among the labels"),
        ([(0, "c/1", "pool", None)], 0, "no development fold"),
        ([(0, "c/1", "pool", 0), (0, "c/1", "pool", 1)], 0, "both sides"),
        ([(0, "c/1", "pool", 0), (0, "c/1", "test", None)], 0, "both sides"),
    ],
)
def test_splits_that_cannot_be(rows, outer, message):
    labels, _ = build_labels(manifest(), MAP, TASK)
    with pytest.raises(DataError, match=message):
        trial_data(labels, splits(rows), outer, {}, TASK)


def table(**changes):
    values = {"probabilities": np.array([[0.9, 0.1], [0.3, 0.7]]), "attributes": np.array([[1.0, 9.0], [2.0, 3.0]]), **changes}
    return pl.concat(
        [prediction_table(TASK, ["a", "b"], "dev", [0, 1], **values), prediction_table(TASK, ["t", "u"], "test", [None, None], **values)]
    )


def test_predictions_round_trip(tmp_path):
    path = tmp_path / "predictions.parquet"
    frame = table()
    assert frame.columns == ["utterance", "fold", "split", "p.anger", "p.neutral", "arousal", "valence"]
    frame.select("valence", "p.neutral", "split", "arousal", "fold", "p.anger", "utterance").write_parquet(
        path
    )  # columns by name, not by place
    dev = read_predictions(path, TASK, "dev")
    assert dev.utterances == ["a", "b"]
    assert dev.fold.tolist() == [0, 1]
    assert np.allclose(dev.probabilities, [[0.9, 0.1], [0.3, 0.7]])
    assert np.allclose(dev.attributes, [[1, 7], [2, 3]])  # held to the scale
    assert dev.probabilities.dtype == np.float32
    assert read_predictions(frame, TASK, "test").fold.tolist() == [-1, -1]
    assert read_predictions(table(std=np.ones((2, 2))), TASK).std.shape == (4, 2)


def test_predictions_of_another_task_are_refused(tmp_path):
    with pytest.raises(MissingFileError):
        read_predictions(tmp_path / "none.parquet", TASK)
    with pytest.raises(DataError, match=r"p\.joy"):
        read_predictions(table().rename({"p.anger": "p.joy"}), TASK)
    with pytest.raises(DataError, match="twice"):
        read_predictions(pl.concat([table(), table()]), TASK)
    with pytest.raises(DataError, match="not a finite number"):
        table(probabilities=np.array([[np.nan, 1], [0, 1]]))
