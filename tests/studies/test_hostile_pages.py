"""Names out of somebody else's files, on every page that is written: each is shown as the text that
it is, and no script runs.
"""

from __future__ import annotations

import asyncio
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import polars as pl
import pytest
import yaml
from browser import CHROMIUM, Tab, opened
from safetensors.numpy import save_file
from test_units_validity import HZ, QUICK, STEP, planted

from raysere.base.errors import ConfigError, DataError
from raysere.corpora.ipa import ipa_phones
from raysere.corpora.manifest import Manifest, rows_to_table
from raysere.ensemble.evaluate.evaluation import evaluate
from raysere.features.spec import FeatureSpec
from raysere.pipeline.experiment import load_experiment
from raysere.report import charts
from raysere.report.page import write_report
from raysere.studies.layers.compare import CorpusLayers, Settings, compare, describe, distances
from raysere.studies.layers.files import plain_json
from raysere.studies.layers.oracle import oracle
from raysere.studies.layers.page import write_page
from raysere.studies.units.files import write_units
from raysere.studies.units.page import write_units_page
from raysere.studies.units.study import study_units
from raysere.training.task import Task

ATTACKS = (
    "<script>ran({n})</script>",
    "<svg onload=ran({n})>",
    '"><img src=x onerror=ran({n})>',
    "<svg><script>ran({n})</script></svg>",
    '" autofocus tabindex=1 onfocus="ran({n})" x="',
    "'><svg onload=ran({n})>",
    "</style></title></text></svg><script>ran({n})</script>",
    "<svg></title><img src=x onerror=ran({n})>",
    "]]><svg onload=ran({n})/>",
    "--><iframe srcdoc='<script>parent.ran({n})</script>'></iframe>",
    '<a href="javascript:ran({n})">here</a>',
    "[here](javascript:ran({n}))",
    "javascript:ran({n})",
)
ELEMENTS = """html head meta title style body main h1 h2 h3 p nav a section div span b strong em code ul li details summary hr
figure figcaption table thead tbody tr th td svg text rect line circle polyline polygon"""


class Bad:
    """Texts that try to run a script, each calling ``ran`` with a number of its own; the same for
    the same name.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        n = len(self.texts)
        return self.texts.setdefault(name, ATTACKS[n % len(ATTACKS)].format(n=n) + name)

    def file(self, name: str) -> str:
        """One that a file can be called."""
        n = len(self.texts)
        files = [attack for attack in ATTACKS if "/" not in attack]
        return self.texts.setdefault(name, files[n % len(files)].format(n=n) + name)

    def all(self, value: Any, keep: tuple[str, ...] = ("format", "file")) -> Any:
        """Every text in plain values made bad, but for those under the keys to ``keep``."""
        if isinstance(value, dict):
            return {key: one if key in keep else self.all(one, keep) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.all(one, keep) for one in value]
        return self(value) if isinstance(value, str) else value


def make_run(folder: Path, bad: Bad) -> Path:
    """A run with made-up trials, as ``raysere run`` leaves it before the report; evaluated by the
    real ensembler.
    """
    rng = np.random.default_rng(0)
    # joined as a page joins them these make one element that takes the focus and runs a script, and
    # none has a blank or a slash
    corpora = ["<svg", 'autofocus=""', 'onfocus="ran(-1)"', 'tabindex="1">']
    classes = [bad(name) for name in ("anger", "neutral", "sadness")]
    rows = []
    for n in range(96):
        corpus, speaker = corpora[n % 4], n % 8
        rows.append(
            {
                "utterance": f"{corpus}/{bad('utterance')}{n:03d}",
                "corpus": corpus,
                "language": "en",
                "path": f"{bad('path')}{n:03d}.wav",
                "duration_s": 1.0,
                "sampling_rate": 16000,
                "speaker": f"{corpus}/{bad(f'speaker {speaker}')}",
                "sex": "other",
                "emotion": classes[n % 3],
                "votes": [{"rater": bad("rater"), "emotion": classes[n % 3]}],
                "transcript": bad("transcript"),
                "words": [{"label": bad("word"), "start_s": 0.0, "end_s": 0.5}],
                "phones": [{"label": bad("phone"), "start_s": 0.0, "end_s": 0.5}],
                "dialogue": bad("dialogue"),
                "traces": [{"rater": bad("rater"), "attribute": "arousal", "time_s": 0.0, "value": 1.0}],
                "video": bad("video"),
            }
        )
    folder.mkdir(parents=True)
    manifest = Manifest.checked(rows_to_table(rows), roots={corpus: bad("root") for corpus in corpora}, notes=[bad("note"), bad("second")])
    manifest.write(folder / "manifest.parquet")
    test = [n % 8 >= 6 for n in range(96)]
    folds = [None if test[n] else n % 2 for n in range(96)]
    names = [row["utterance"] for row in rows]
    splits = {"outer": [0] * 96, "utterance": names, "role": ["test" if one else "pool" for one in test], "fold": folds}
    types = {"outer": pl.Int32, "utterance": pl.String, "role": pl.String, "fold": pl.Int32}
    pl.DataFrame(splits, schema=types).write_parquet(folder / "splits.parquet")
    task = Task(classes=tuple(classes)).model_dump(mode="json")
    study = bad.file("study")
    (folder / "search" / study).mkdir(parents=True)
    space = {"name": bad("space"), "method": bad("method"), "space": {}}
    features = [{"name": bad("feature"), "spec_key": "0" * 16}]
    described = {"name": "study", "space": space, "method": bad("method"), "features": features, "store": bad("store"), "task": task}
    (folder / "search" / study / "study.json").write_text(json.dumps(described))
    for n in range(10):
        trial = f"{bad.file('trial')}-{n:04d}"
        place = folder / "trials" / trial
        place.mkdir(parents=True)
        p = rng.dirichlet([1, 1, 1], 96) + 1.5 * np.eye(3)[[k % 3 for k in range(96)]] * rng.random((96, 1))
        p /= p.sum(1, keepdims=True)
        found = {"utterance": names, "fold": folds, "split": ["test" if one else "dev" for one in test]}
        schema = {"utterance": pl.String, "fold": pl.Int32, "split": pl.String, **{f"p.{name}": pl.Float32 for name in classes}}
        found |= {f"p.{name}": p[:, k].tolist() for k, name in enumerate(classes)}
        pl.DataFrame(found, schema=schema).write_parquet(place / "predictions.parquet")
        save_file({"x": np.zeros(1)}, place / "model.safetensors")
        head = {
            "format": "raysere.trial/1",
            "trial": trial,
            "study": study,
            "space": bad("space"),
            "method": bad("method"),
            "features": [bad("feature")],
            "modality": ("audio", bad("modality"))[n % 2],
            "config": f"{n:016x}",
            "outer": 0,
            "number": n,
            "seed": n,
            "params": {bad("parameter"): 0.1 * n, bad("choice"): bad(f"choice {n % 2}"), "layers": "one", "layer": n % 3},
        }
        weights = {bad("stream"): {bad("layer 0"): 0.4, bad("layer 1"): 0.6}}
        done = {"status": "done", "score": 0.5 + 0.01 * n, "epoch": 1, "epochs": 2, "seconds": 1.0, "describe": {"layer_weights": weights}}
        (place / "params.yaml").write_text(yaml.safe_dump(head))
        (place / "DONE").write_text(json.dumps({**done, "head": head, "error": bad("error"), "metrics": {bad("metric"): 1.0}}))
    spec = FeatureSpec(
        backbone=bad("backbone"),
        identity="x",
        modality="audio",
        granularity="utterance",
        layers=[{"number": 0, "name": bad("layer"), "dim": 4, "rows": "utterance"}],
        dtype="float32",
        sampling_rate=None,
        frame_s=None,
    )
    (folder / "store" / spec.key).mkdir(parents=True)
    (folder / "store" / spec.key / "spec.json").write_text(json.dumps(spec.to_json()))
    settings = {
        "format": "raysere.run/1",
        "name": bad("run"),
        "task": task,
        "class_map": {"name": "x", "classes": classes, "rules": {name: name for name in classes}},
        "protocol": {"kind": "out_of_fold", "by": "speaker"},
        "features": {bad("feature"): {"backbone": bad("backbone"), "spec_key": spec.key, "granularity": bad("granularity")}},
        "store": "store",
        "ensemble": {"family": "average", "draws": 100},
        "seed": 0,
        "corpora": [{"corpus": bad("adapter"), "path": bad("folder")}],
        "dropped": {bad("dropped"): 3},
        "versions": {bad("package"): bad("version")},
        "manifest_fingerprint": manifest.fingerprint,
        "git_commit": bad("commit"),
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    rejected = {key: [bad(f"rejected {key}")] for key in ("path", "utterance", "reason", "stage")}
    pl.DataFrame(rejected).write_parquet(folder / "quarantine.parquet")
    evaluate(folder)
    return folder


def change(path: Path, bad: Bad, keep: tuple[str, ...] = ("format", "file")) -> None:
    """Make every text in a file of JSON or YAML bad."""
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    path.write_text(write(bad.all(read(path.read_text()), keep)))


def make_layers(folder: Path, bad: Bad) -> Path:
    rng, settings = np.random.default_rng(0), Settings(draws=10, permutations=10, width=1)
    parts, labels = [], []
    for name in (bad("one"), bad("two")):
        label = np.tile(np.arange(3), 16)
        layers = {n: rng.normal(size=(48, 4)) + n * np.eye(3, 4)[label] for n in range(2)}
        parts.append(CorpusLayers(name, bad("language"), [str(n) for n in range(48)], [f"{name}/{n // 6}" for n in range(48)], layers))
        labels.append(label)
    one, two = (describe(part, label, 3, settings) for part, label in zip(parts, labels, strict=True))
    pair = compare(one, two, distances(*parts, settings)[0], settings)
    pair["measures"][bad("measure")] = pair["measures"]["mmd"]
    pair["anchors"][bad("measure")] = pair["anchors"]["mmd"]
    read = oracle(one, two, tuple(labels), ("a", "b", "c"), pair, settings)
    found = {
        "experiment": "layers",
        "classes": ["anger"],
        "synthetic": True,
        "manifest_fingerprint": "x",
        "rejected": ["x"],
        "feature": {"name": "f", "backbone": "b", "key": "k", "pooling": "mean", "layers": [{"number": n, "name": "l"} for n in range(2)]},
        "settings": {**asdict(settings), bad("setting"): "x"},
        "left_out_by_class_map": {bad("left out"): 3},
        "corpora": {
            part.name: {"language": "x", "utterances": 48, "speakers": 8, "relevance": seen.relevance, "cka": seen.map}
            for part, seen in ((parts[0], one), (parts[1], two))
        },
        "pairs": [{"source": parts[0].name, "target": parts[1].name, **pair, "ORACLE": read}],
    }
    folder.mkdir()
    (folder / "layers.json").write_text(json.dumps(plain_json(found)))
    change(folder / "layers.json", bad, keep=("similarity", "source", "target"))
    return folder


def make_units(folder: Path, bad: Bad) -> Path:
    view, table = planted()
    rows = [("u", "xx", f"xx/{speaker}", vowel, *HZ[vowel]) for vowel in "aeiou" for speaker in range(2) for _ in range(3)]
    formants = pl.DataFrame(rows, schema=["utterance", "language", "speaker", "vowel", "f1", "f2"], orient="row")
    settings = QUICK.model_copy(update={"layers_compared": 0, "permutations": 19, "bootstraps": 20, "splits": 2})
    result = study_units(view, table, ipa_phones(table), (STEP / 2, STEP), settings, formants=formants)
    write_units(result, folder, experiment="units", corpora=["one", "two"], notes=["a note"], synthetic=True)
    change(folder / "units.json", bad, keep=("format", "file", "kind"))
    for path in (folder / "tables").glob("*.parquet"):
        table = pl.read_parquet(path)
        texts = [name for name, kind in table.schema.items() if kind == pl.String and name != "kind"]
        table.with_columns(pl.col(name).map_elements(bad, return_dtype=pl.String) for name in texts).write_parquet(path)
    return folder


@dataclass
class Seen:
    """What a browser made of a page: the calls of ``ran``, elements that no page has, all of its
    text.
    """

    called: list[int]
    foreign: list[str]
    text: str


_TOUCH = """for (const e of document.querySelectorAll('*')) {
  if (e.localName === 'details') e.open = true
  if (e.localName === 'a' || e.tabIndex >= 0) { e.focus && e.focus(); e.dispatchEvent(new MouseEvent('click', {bubbles: true})) }
}"""
_FOREIGN = """[...document.querySelectorAll('*')].filter(e => !ELEMENTS.includes(e.localName) || [...e.attributes].some(a =>
  a.name.startsWith('on') || /^(src|srcdoc|action|href|xlink:href|autofocus)$/.test(a.name) && !a.value.startsWith('#')
)).map(e => e.outerHTML.slice(0, 120))""".replace("ELEMENTS", json.dumps(ELEMENTS.split()))


async def look(tab: Tab, page: Path) -> Seen:
    await tab.call("Page.navigate", url=page.as_uri())
    await tab.until("document.readyState === 'complete'")
    await tab.value(_TOUCH)
    await asyncio.sleep(0.2)  # for images that fail to load, and links that were pressed
    return Seen(await tab.value("calls"), await tab.value(_FOREIGN), await tab.value("document.documentElement.textContent"))


@pytest.fixture(scope="module")
def bad() -> Bad:
    return Bad()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, bad: Bad) -> dict[str, Path]:
    """The pages by name; ``report`` of an evaluated run, ``changed`` of one whose saved files are
    all bad, the card as HTML.
    """
    root = tmp_path_factory.mktemp("pages")
    run = make_run(root / "run", bad)
    card = root / "card.html"
    card.write_text("<main>" + markdown.markdown((run / "ensemble" / "card.md").read_text(), extensions=["tables"]) + "</main>")
    found = {"report": write_report(run).rename(root / "report.html"), "card": card}
    for name in ("experiment.yaml", "evaluation.json", "ensemble/ensemble.yaml"):
        change(run / name, bad, keep=("format", "kind", "fingerprint", "weights", "sha256"))
    saved = yaml.safe_load((run / "ensemble" / "ensemble.yaml").read_text())
    kept = {key: value for key, value in saved.items() if key not in ("card", "figures")}  # hashes of what was changed
    (run / "ensemble" / "ensemble.yaml").write_text(yaml.safe_dump(kept))
    found["changed"] = write_report(run)
    found["layers"] = write_page(make_layers(root / "layers", bad))
    found["units"] = write_units_page(make_units(root / "units", bad))
    figures = sorted((root / "units" / "figures").glob("*.svg"))
    return found | {f"figure {number}": path for number, path in enumerate(figures)}


_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">\n')


@pytest.fixture(scope="module")
def seen(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Each page as a browser has it; as ``NAME bare`` a copy without its policy, and as
    ``NAME forced`` copies with a script in them.
    """
    if CHROMIUM is None:
        warnings.warn("what a browser makes of the pages is NOT TESTED: no chromium on the PATH", stacklevel=1)
        pytest.skip("no chromium on the PATH")
    root, every = tmp_path_factory.mktemp("browser"), dict(pages)
    for name in ("report", "changed", "layers", "units"):
        text = pages[name].read_text()
        script = "<script>ran(-2)</script></main></body></html>"
        for kind, copy in (
            ("bare", _POLICY.sub("", text)),
            ("forced", text.replace("</main></body></html>", script)),
            ("forced bare", _POLICY.sub("", text).replace("</main></body></html>", script)),
        ):
            every[f"{name} {kind}"] = root / f"{name} {kind}.html"
            every[f"{name} {kind}"].write_text(copy)

    async def visit() -> dict[str, Seen]:
        async with opened("about:blank", root / "profile") as tab:
            await tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
            await tab.call("Page.addScriptToEvaluateOnNewDocument", source="var calls = [], ran = n => calls.push(n)")
            return {name: await look(tab, page) for name, page in every.items()}

    return asyncio.run(visit())


def test_no_text_of_a_table_or_a_run_is_taken_for_a_script_or_a_drawing(seen: dict[str, Seen]) -> None:
    found = {name: one for name, one in seen.items() if "forced" not in name}
    assert {name: one.called for name, one in found.items() if one.called} == {}
    assert {name: one.foreign for name, one in found.items() if one.foreign} == {}


def test_a_policy_keeps_scripts_out_even_where_a_text_was_not_escaped(seen: dict[str, Seen], pages: dict[str, Path]) -> None:
    for name in ("report", "changed", "layers", "units"):
        assert _POLICY.search(pages[name].read_text())[1].startswith("default-src 'none'; ")
        assert seen[f"{name} forced bare"].called == [-2]  # so calls are counted
        assert seen[f"{name} forced"].called == []


def test_the_texts_are_there_to_be_read(seen: dict[str, Seen], bad: Bad) -> None:
    shown = {
        "report": ("run", "note", "anger", "study", "trial", "parameter", "modality", "package", "version", "commit", "dropped")
        + ("feature", "backbone", "granularity", "rejected path", "rejected reason", "rejected stage", "method"),
        "changed": ("uar", "test", "average"),
        "layers": ("one", "two", "layers", "measure", "setting", "left out", "f", "b"),
        "units": ("xx", "yy", "a", "units", "a note"),
        "card": ("run", "anger", "backbone"),
    }
    for page, names in shown.items():
        assert [name for name in names if bad(name) not in seen[page].text] == [], page
    assert "<svg, autofocus=" in seen["report"].text


def test_a_figure_is_one_file_in_its_folder_whatever_a_language_is_called(pages: dict[str, Path]) -> None:
    figures = [path for name, path in pages.items() if name.startswith("figure")]
    assert len(figures) >= 8
    assert {path.parent for path in figures} == {pages["units"].parent / "figures"}
    for path in figures:
        ElementTree.parse(path)


def test_a_chart_escapes_what_it_is_given_and_the_file_of_it_is_xml() -> None:
    for attack in ATTACKS:
        name = attack + "\x00\x1b\ud800"
        chart = charts.bars([(name, 1.0, "c0")], title=name)
        root = ElementTree.fromstring(charts.standalone(chart))
        assert {element.tag.rpartition("}")[2] for element in root.iter()} == {"svg", "title", "style", "text", "rect"}
        assert root.find("{*}title").text == attack + 3 * "\N{REPLACEMENT CHARACTER}"
        assert "<script" not in charts.svg(10, 10, ["<script>"], "a part that is no markup")


@pytest.mark.parametrize("attack", [attack.format(n=0) for attack in ATTACKS])
def test_names_that_could_be_script_are_refused_where_names_are_given(attack: str, tmp_path: Path) -> None:
    row = {"utterance": "c/u", "corpus": "c", "language": attack, "speaker": "c/s"}
    with pytest.raises(DataError, match="BCP-47"):
        Manifest.checked(rows_to_table([row]))
    plain: dict[str, Any] = {
        "name": "toy",
        "corpora": [{"corpus": "table", "path": "x"}],
        "task": {"classes": ["anger"]},
        "features": {"acoustic": {"backbone": "acoustic"}},
        "search": [{"space": "pooled", "features": "acoustic"}],
    }
    search = {"space": "pooled", "features": "acoustic", "name": attack}
    for change in ({"name": attack}, {"features": {attack: {"backbone": "acoustic"}}}, {"search": [search]}):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(plain | change))
        with pytest.raises(ConfigError, match="letters, digits"):
            load_experiment(tmp_path / "x.yaml")
