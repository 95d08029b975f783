"""``analyze layers`` as a whole: a planted shared layer is found without target labels, and what a
person gets.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import soundfile
import yaml
from markupsafe import Markup

from raysere.base.errors import DataError, UnknownNameError
from raysere.cli.main import main
from raysere.features.extract.run import extract_local
from raysere.features.spec import resolve
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.prepare import load_manifest
from raysere.report import charts
from raysere.studies.estimate import Estimate
from raysere.studies.layers.cells import Cells
from raysere.studies.layers.cka import second_order
from raysere.studies.layers.compare import CorpusLayers, Settings, anchors_by, compare, describe, distances, map_similarity, similarity_of
from raysere.studies.layers.files import plain_json
from raysere.studies.layers.oracle import oracle

CLASSES = ("anger", "happiness", "neutral", "sadness")
SETTINGS = Settings(draws=60, permutations=60, width=1)
SHARED, TELLING = 2, (2, 3)


def planted(seed: int, *, speakers: int = 6, each: int = 16, dim: int = 16) -> tuple[CorpusLayers, np.ndarray]:
    """Five layers of a language. Layers 2 and 3 tell the class; only in layer 2 do both languages
    tell it the same way, with the same covariance and mean; in the others each language has its
    own. Layer 4 is alike in both, and tells nothing.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng([1, seed])
    directions = shared.normal(size=(4, dim)) * 1.5
    mixing = np.eye(dim) + 0.6 * shared.normal(size=(dim, dim)) / dim**0.5
    label = np.tile(np.arange(4), speakers * each // 4)
    people = [f"{seed}/{number}" for number in np.repeat(np.arange(speakers), each)]
    layers = {}
    for number in range(5):
        noise = own.normal(size=(len(label), dim))
        if number in (SHARED, 4):
            noise = noise @ mixing
            layers[number] = noise + (directions[label] if number == SHARED else 0)
            continue
        foreign = np.eye(dim) + 1.5 * own.normal(size=(dim, dim)) / dim**0.5
        told = own.normal(size=(4, dim))[label] * 1.5 if number in TELLING else 0
        layers[number] = noise @ foreign + told + own.normal(size=dim)
    return CorpusLayers(f"c{seed}", "xx", [f"{seed}/{row}" for row in range(len(label))], people, layers), label


@pytest.fixture(scope="module")
def pair():
    (source, label), (target, other) = planted(1), planted(2)
    measured, _ = distances(source, target, SETTINGS)
    described = describe(source, label, 4, SETTINGS), describe(target, None, 4, SETTINGS)
    return described, (label, other), measured


@pytest.mark.parametrize("measure", ["covariance_gap", "mean_gap", "mmd"])
def test_the_layer_that_is_shared_and_tells_emotions_is_found_without_target_labels(pair, measure):
    (source, target), _, measured = pair
    similarity = similarity_of(measure, measured[measure])
    assert set(np.argsort(-similarity)[:2].tolist()) == {SHARED, 4}
    relevance = [one.value for one in source.relevance]
    assert set(np.argsort(relevance)[-2:].tolist()) == set(TELLING)
    assert target.relevance is None
    assert anchors_by(measure, measured[measure], source, SETTINGS)["single"] == [SHARED]
    assert anchors_by(measure, measured[measure], source, replace(SETTINGS, gamma=0))["single"][0] in TELLING


def test_the_oracle_agrees_with_what_was_planted(pair):
    described, labels, measured = pair
    found = oracle(*described, labels, CLASSES, compare(*described, measured, SETTINGS), SETTINGS)
    transfer = [one.value for one in found["transfer"]["corpus"]]
    assert int(np.argmax(transfer)) == SHARED
    assert transfer[SHARED] > 0.8
    assert transfer[3] < 0.6
    assert found["anchors"]["group"].value == pytest.approx(transfer[SHARED])
    assert [one.value for window, one in found["windows"] if window == [3]] == [pytest.approx(transfer[3])]
    cells = [one.value for one in found["measures"]["emotion.centred_cosine"]]
    assert int(np.argmax(cells)) == SHARED
    with pytest.raises(DataError, match="labels of the source"):
        oracle(described[1], described[0], labels, CLASSES, {}, SETTINGS)


def test_nothing_outside_the_oracle_changes_with_target_labels(pair):
    """The label-free part takes no target label; here by its whole answer, with and without the
    target's own relevance.
    """
    (source, target), (_, other), measured = pair
    labelled = describe(target.corpus, np.random.default_rng(0).permutation(other), 4, SETTINGS)
    without, with_labels = (plain_json(compare(source, one, measured, SETTINGS)) for one in (target, labelled))
    assert without == with_labels


def test_one_loud_dimension_does_not_make_the_map(pair):
    """It may hold half of the variance of a real layer."""
    (source, target), _, _ = pair
    loud = {n: x * np.where(np.arange(x.shape[1]) == n, 50.0, 1.0) for n, x in source.corpus.layers.items()}
    again = describe(replace(source.corpus, layers=loud), None, 4, SETTINGS)
    assert again.map == pytest.approx(source.map, abs=1e-9)
    found = map_similarity(source, target, SETTINGS)
    assert found.low < found.value < found.high
    assert found.value == second_order(source.map, target.map).value
    assert len(source.without) == 6  # as many as speakers, where those are few
    alone = map_similarity(replace(source, without=[]), target, SETTINGS)
    assert alone.value == found.value
    assert np.isnan(alone.low)


def test_label_free_cells_add_their_measures(pair):
    (source, target), (label, other), measured = pair
    vowel = {0: "a", 1: "e", 2: "i", 3: "u"}
    cells = tuple(
        {n: Cells.of(x, [vowel[code] for code in codes.tolist()], one.corpus.speakers) for n, x in one.corpus.layers.items()}
        for one, codes in ((source, label), (target, other))
    )
    settings = replace(SETTINGS, similarity="cells.centred_cosine")
    found = compare(source, target, measured, settings, cells=cells)
    assert found["cells"] == ["a", "e", "i", "u"]
    assert found["anchors"]["cells.centred_cosine"]["single"] == [SHARED]
    with pytest.raises(DataError, match="no rows of the layers 3"):
        compare(source, target, measured, settings, cells=({n: c for n, c in cells[0].items() if n != 3}, cells[1]))
    with pytest.raises(UnknownNameError, match="cells.cosine"):
        compare(source, target, measured, replace(SETTINGS, similarity="cells.cosine"), cells=cells)


def test_a_sample_is_even_over_speakers_and_the_same_each_time():
    corpus, _ = planted(1)
    lopsided = corpus.rows(np.r_[0:16, 16:20, 32:96])
    part = lopsided.sample(30, 0)
    counts = {name: part.speakers.count(name) for name in set(part.speakers)}
    assert len(part.utterances) == 30
    assert counts["1/1"] == 4
    assert set(counts.values()) <= {4, 5, 6}
    assert part.utterances == lopsided.sample(30, 0).utterances != lopsided.sample(30, 1).utterances
    assert np.array_equal(part.layers[3][7], corpus.layers[3][corpus.utterances.index(part.utterances[7])])


def test_estimates_become_plain_values():
    assert plain_json({"x": [Estimate(float("nan"), reason="why"), float("inf"), np.eye(1)]}) == {
        "x": [{"value": None, "low": None, "high": None, "null": None, "null_edge": None, "p": None, "reason": "why"}, None, [[1.0]]]
    }


def test_curves_break_where_there_is_no_value_and_heat_maps_leave_it_blank():
    drawn = charts.curves(
        [("one", [1, None, 2, 3], [0, None, 1, 2], [2, None, 3, 4], "c0")],
        list("0123"),
        title="a<b",
        x_label="layer",
        y_label="y",
        null=[0] * 4,
    )
    assert drawn.count("<polyline") == 3  # two stretches and the null
    assert drawn.count("<circle") == 3
    assert "a&lt;b" in drawn
    assert charts.heatmap([[1, None], [0.5, 1]], ["0", "1"], ["0", "1"], title="map").count('fill-opacity="') == 3


def test_a_chart_as_a_file_has_its_size_and_a_rule_for_everything_that_it_draws():
    drawn = charts.curves(
        [("one", [1.0, 2.0], [0.5, 1.5], [1.5, 2.5], "c0")],
        ["0", "1"],
        title="curves",
        x_label="x",
        y_label="y",
        null=[1.0, 1.0],
        marked=[1],
    )
    chart = Markup(drawn)
    alone = charts.standalone(chart)
    root = ElementTree.fromstring(alone)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    drawn_with = {name for classes in re.findall(r'class="([^"]*)"', drawn) for name in classes.split()}
    assert {"band", "wash"} <= drawn_with
    assert [name for name in drawn_with if name not in ("ink", "stroke") and f".{name}{{" not in alone] == []


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Two corpora of tones in one experiment: the second at other pitches, with one clip that
    cannot be read and one without a label.
    """
    folder = tmp_path_factory.mktemp("layers")
    random = np.random.default_rng(0)
    for corpus, shift in (("one", 1.0), ("two", 1.3)):
        (folder / corpus).mkdir()
        rows = []
        for speaker in range(3):
            for code, emotion in enumerate(("anger", "neutral", "sadness")):
                for take in range(5):
                    time = np.arange(8000) / 16000
                    pitch = (260, 180, 130)[code] * shift * (1 + 0.05 * speaker) * (1 + 0.03 * random.normal())
                    wave = (0.3, 0.15, 0.06)[code] * sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6))
                    name = f"{speaker}{code}{take}.wav"
                    soundfile.write(folder / corpus / name, wave + 0.003 * random.normal(size=8000), 16000)
                    rows.append({"path": name, "speaker": f"s{speaker}", "emotion": emotion})
        rows.append({"path": "000.wav", "speaker": "s0", "emotion": "bored", "start_s": 0.0, "end_s": 0.3})
        if corpus == "two":
            rows.append({"path": "gone.wav", "speaker": "s0", "emotion": "anger"})
        pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / corpus / "table.csv")
    value = {
        "name": "toy",
        "corpora": [{"corpus": "table", "path": str(folder / name / "table.csv"), "options": {"name": name}} for name in ("one", "two")],
        "task": {"classes": {"anger": "anger", "neutral": "neutral", "sadness": "sadness", "bored": None}},
        "features": {"acoustic": {"backbone": "acoustic"}, "words": {"backbone": "hashed"}},
        "search": [{"space": "pooled_quick", "features": "acoustic"}],
        "extraction": {"actors": 1},
        "runs": str(folder / "runs"),
        "store": str(folder / "features"),
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(value))
    loaded = load_experiment(folder / "toy.yaml")  # extracted here, without Ray, so that the commands find it done
    extract_local(load_manifest(loaded)[0], resolve(loaded.features["acoustic"]), loaded.store_folder)
    return folder


def call(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["raysere", "analyze", "layers", *words, "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def test_the_command_writes_its_files_and_its_page(experiment, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, str(experiment / "toy.yaml"), "--draws", "50", "--json")
    found = json.loads(out)
    assert code == 1  # one input was rejected
    assert [row["path"] for row in found["rejected"]] == ["gone.wav"]
    folder = experiment / "runs" / "toy" / "layers"
    assert json.loads((folder / "layers.json").read_text()) == {key: value for key, value in found.items() if key not in ("folder", "page")}
    assert found["format"] == "raysere.layers/1"
    assert [(pair["source"], pair["target"]) for pair in found["pairs"]] == [("one", "two"), ("two", "one")]
    assert found["left_out_by_class_map"] == {"bored": 2}
    assert found["corpora"]["one"]["utterances"] == 45
    there, back = (pair["measures"]["mmd"] for pair in found["pairs"])
    assert there == back
    numbers = [layer["number"] for layer in found["feature"]["layers"]]
    table = pl.read_parquet(folder / "measures.parquet")
    row = table.filter((pl.col("source") == "two") & (pl.col("measure") == "transfer.corpus") & (pl.col("layer") == numbers[-1]))
    assert row["value"].item() == pytest.approx(found["pairs"][1]["ORACLE"]["transfer"]["corpus"][-1]["value"])
    assert row["oracle"].item()
    assert not table.filter(~pl.col("oracle"))["measure"].str.contains("transfer|emotion").any()
    assert pl.read_parquet(folder / "cka.parquet").height == 2 * len(numbers) ** 2
    assert set(pl.read_parquet(folder / "anchors.parquet")["kind"]) >= {"group", "random_group", "least_similar"}
    page = (folder / "layers.html").read_text()
    assert "ORACLE" in page
    assert "one → two" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert page.count("<svg") >= 2 + 1 + 2 * 8


def test_without_the_oracle_no_target_label_is_used_and_the_rest_is_the_same(experiment, monkeypatch, capsys):
    arguments = (str(experiment / "toy.yaml"), "--source", "one", "--draws", "50", "--out", str(experiment / "again"))
    whole = json.loads(call(monkeypatch, capsys, *arguments, "--json")[1])
    rows = pl.read_csv(experiment / "two" / "table.csv")
    shuffled = rows.with_columns(pl.when(pl.col("emotion") != "bored").then(pl.lit("neutral")).otherwise("emotion").alias("emotion"))
    shuffled.write_csv(experiment / "two" / "table.csv")
    try:
        bare = json.loads(call(monkeypatch, capsys, *arguments, "--no-oracle", "--json")[1])
    finally:
        rows.write_csv(experiment / "two" / "table.csv")
    assert "ORACLE" not in bare["pairs"][0]
    assert "ORACLE" not in (experiment / "again" / "layers.html").read_text()
    for key in ("measures", "anchors", "second_order", "plain"):
        assert bare["pairs"][0][key] == whole["pairs"][0][key]


def test_text_for_people_and_errors_that_can_be_acted_on(experiment, monkeypatch, capsys, tmp_path):
    path = str(experiment / "toy.yaml")
    code, out, _ = call(
        monkeypatch, capsys, path, "--source", "two", "--draws", "50", "--pooling", "mean_std", "--out", str(tmp_path / "text")
    )
    assert code == 1
    assert "two -> one" in out
    assert "one -> two" not in out
    assert "ORACLE transfer" in out
    assert "anchors, group:" in out
    for words, message in [
        (("--source", "three"), r"Unknown corpus 'three'. Valid choices: one, two."),
        (("--feature", "speech"), r"Unknown feature 'speech'"),
        (("--feature", "words"), "counts of words"),
        (("--similarity", "cosine"), "Unknown similarity 'cosine'"),
        (("--source", "one", "--target", "one"), "The layers of two corpora are compared"),
        (("--cells", str(tmp_path / "none.parquet")), "no table of cells"),
        (
            ("--set", "task.classes={anger: x, neutral: y, 'one:sadness': z, sadness: null, bored: null}"),
            "The source 'two' has no utterance",
        ),
    ]:
        code, _, error = call(monkeypatch, capsys, path, *words, "--out", str(tmp_path / "bad"))
        assert code == 2, words
        assert message in error
    assert not (tmp_path / "bad").exists()
