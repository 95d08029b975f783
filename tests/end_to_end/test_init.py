"""`raysere init` writes an experiment that is valid as it stands, made from what the folder holds."""

from __future__ import annotations

import pytest

from raysere.base.errors import ConfigError
from raysere.cli.init import write_experiment
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.prepare import prepare
from tests.end_to_end.toy import make_corpus


@pytest.mark.parametrize(
    ("corpus", "classes", "kind"), [("emodb", "emodb4", "out_of_fold"), ("nemo", "nemo6", "out_of_fold"), ("meld", "meld7", "holdout")]
)
def test_the_experiment_of_a_real_corpus_can_be_run(tmp_path, corpora_root, corpus, classes, kind):
    path = tmp_path / "mine.yaml"
    lines = write_experiment(path, corpus=corpus, folder=corpora_root / corpus, classes=None, kind="categorical", force=False)
    assert f"{corpus}: " in lines[0]
    experiment = load_experiment(path)
    assert (experiment.task.classes, experiment.protocol.kind) == (classes, kind)
    prepared = prepare(experiment)
    assert prepared.studies
    assert ("words" in experiment.features) == (corpus == "meld")  # elsewhere every sentence is spoken in every emotion
    assert ("acoustic" in experiment.features) == (corpus != "meld")  # of which no audio is at hand
    assert experiment.protocol.by == ("dialogue" if corpus == "meld" else "speaker")


def test_a_table_takes_its_labels_as_classes_and_its_words_where_they_tell_something(tmp_path):
    table = make_corpus(tmp_path / "corpus")
    write_experiment(tmp_path / "mine.yaml", corpus="table", folder=table, classes=None, kind="categorical", force=False)
    experiment = load_experiment(tmp_path / "mine.yaml")
    assert experiment.task.classes == ["anger", "neutral", "sadness"]
    assert set(experiment.features) == {"acoustic", "words"}
    assert prepare(experiment).task.classes == ("anger", "neutral", "sadness")


def test_an_experiment_is_not_replaced_unasked(tmp_path):
    table = make_corpus(tmp_path / "corpus", takes=1)
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        write_experiment(tmp_path / "mine.yaml", corpus="table", folder=table, classes=None, kind="categorical", force=False)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
