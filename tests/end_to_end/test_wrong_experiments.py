"""What cannot be right is said in one message, with the valid choices, the right exit code, and
nothing written.
"""

from __future__ import annotations

import os

import polars as pl
import pytest

from raysere.cli.main import main
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.prepare import prepare, write_run
from tests.end_to_end.toy import experiment, make_corpus
from tests.small_disk import small_disk


def raysere(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["raysere", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    return int(stopped.value.code or 0), printed.out + printed.err


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serch": 1}, ["serch", "unknown key", "did you mean 'search'"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "trials": -1}]}, ["search.0.trials"]),
        ({"search": [{"space": "no_such_space", "features": "acoustic"}]}, ["no_such_space", "pooled"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "fixed": {"hiden": 3}}]}, ["hiden", "hidden"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "fixed": {"dropout": 3}}]}, ["dropout"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "fixed": {"layers": "one", "layer": 17}}]}, ["layer", "17"]),
        ({"features": {"acoustic": {"backbone": "acoustics"}, "words": {"backbone": "hashed"}}}, ["acoustics", "Did you mean 'acoustic'"]),
        (
            {"features": {"acoustic": {"backbone": "acoustic", "layers": [9]}}, "search": [{"space": "pooled", "features": "acoustic"}]},
            ["no layer 9", "frames"],
        ),
        ({"task": {"classes": "emodb5"}}, ["emodb5", "emodb4"]),
        ({"task": {"classes": ["anger", "neutral"]}}, ["sadness"]),
        ({"corpora": [{"corpus": "emodbb", "path": "."}]}, ["emodbb", "emodb"]),
        ({"protocol": {"kind": "out_of_fold", "folds": 9}}, ["9"]),
        ({"task": {"kind": "dimensional"}}, ["rating of arousal, valence, dominance"]),
        ({"task": {"kind": "dimensional", "scale": [7, 1]}}, ["low below high"]),
        ({"task": {"kind": "dimensional", "attributes": []}}, ["task.attributes"]),
        ({"search": [{"space": "pooled", "features": []}]}, ["search.0.features"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "fixed": {"lr": float("nan")}}]}, ["finite"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "name": "a b"}]}, ["'a b'", "folder"]),
        ({"features": {"my feat": {"backbone": "acoustic"}}, "search": [{"space": "pooled", "features": "my feat"}]}, ["'my feat'"]),
    ],
)
def test_a_wrong_experiment_is_refused_before_anything_is_written(tmp_path, table, monkeypatch, capsys, changes, words):
    path = experiment(tmp_path, table, **changes)
    monkeypatch.setattr("raysere.pipeline.stages.start_ray", lambda: None)  # it starts beside the checks, which need none
    code, printed = raysere(monkeypatch, capsys, "run", str(path), "--quiet")
    assert code == 2, printed
    assert all(word in printed for word in words), printed
    assert "Traceback" not in printed
    assert sorted(os.listdir(tmp_path)) == ["toy.yaml"]


def test_text_features_of_a_corpus_without_transcripts_are_refused(tmp_path, monkeypatch, capsys):
    path = experiment(tmp_path, make_corpus(tmp_path / "corpus", text=False))
    code, printed = raysere(monkeypatch, capsys, "run", str(path), "--quiet")
    assert code == 2
    assert "reads transcripts, and the corpora have none" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["a: 2001-99-99\n", "a: &a [*a]\n", "", "\x00\x01", "- 1\n", "name: [unclosed\n"])
def test_yaml_that_is_none_is_one_message(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "bad.yaml").write_text(text)
    code, printed = raysere(monkeypatch, capsys, "run", str(tmp_path / "bad.yaml"), "--quiet")
    assert code == 2, printed
    assert "bad.yaml" in printed
    assert "Traceback" not in printed


def test_a_start_that_was_cut_off_before_its_experiment_was_written_leaves_nothing_behind(tmp_path, table):
    first, second = (
        load_experiment(experiment(tmp_path, table)),
        load_experiment(experiment(tmp_path, table, seed=5, protocol={"folds": 2})),
    )
    folder = write_run(prepare(first))
    (folder / "experiment.yaml").unlink()
    write_run(prepare(second))
    assert pl.read_parquet(folder / "splits.parquet").equals(prepare(second).splits)


def test_a_branch_that_hangs_on_a_held_parameter_goes_or_stays_with_it(tmp_path, table):
    def space(fixed):
        search = [{"space": "pooled", "features": "acoustic", "fixed": fixed}]
        return prepare(load_experiment(experiment(tmp_path, table, search=search))).studies[0].parsed_space()

    assert "layer" not in space({"layers": "mix"}).dims
    assert space({"layers": "one"}).dims["layer"].when == {}


def test_an_unknown_method_lists_the_methods(tmp_path, table, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("method: poled\nspace:\n  lr: {float: [0.001, 0.01]}\n")
    path = experiment(tmp_path, table, search=[{"space": str(tmp_path / "mine.yaml"), "features": "acoustic"}])
    code, printed = raysere(monkeypatch, capsys, "tune", str(path), "--quiet")
    assert code == 2
    assert "poled" in printed
    assert "pooled" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("column", "value", "words"), [("speaker", "s0", ["speaker"]), ("emotion", "anger", ["class"])])
def test_one_speaker_or_one_class_only_cannot_be_split(tmp_path, table, monkeypatch, capsys, column, value, words):
    alone = table.parent / f"only_{column}.csv"
    pl.read_csv(table).filter(pl.col(column) == value).write_csv(alone)
    code, printed = raysere(monkeypatch, capsys, "run", str(experiment(tmp_path, alone)), "--quiet")
    assert code == 2, printed
    assert all(word in printed for word in words), printed
    assert not (tmp_path / "runs").exists()


def test_a_missing_corpus_path_is_named(tmp_path, monkeypatch, capsys):
    code, printed = raysere(monkeypatch, capsys, "run", str(experiment(tmp_path, tmp_path / "nowhere.csv")), "--quiet")
    assert code == 2
    assert "nowhere.csv" in printed


@pytest.mark.parametrize(("options", "word"), [("size=40k", "full"), ("ro,size=1m", "read-only")])
@pytest.mark.parametrize("what", ["store", "runs"])
def test_a_full_or_unwritable_disk_ends_with_3_and_leaves_nothing_half_written(tmp_path, table, monkeypatch, capsys, options, word, what):
    with small_disk(tmp_path / "disk", options) as disk:
        if word == "full":
            disk.leave(0)
        here = disk.folder / "here"
        code, printed = raysere(monkeypatch, capsys, "run", str(experiment(tmp_path, table, **{what: str(here)})), "--quiet")
        assert code == 3, printed
        assert word in printed or "does not fit" in printed or "free" in printed, printed
        assert "Traceback" not in printed
        assert [path for path in here.rglob("*") if path.name.endswith(".tmp")] == []
