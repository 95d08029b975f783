"""What TensorBoard itself answers and shows of a run: its data endpoints, and its page in a
browser.
"""

from __future__ import annotations

import io
import shutil
import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_search_ledger import put
from toy import toy_run, toy_study
from watching import ask, look, sessions, tensorboard

from raysere.base.files import write_yaml
from raysere.cli.main import cli
from raysere.pipeline.prepare import RUN_FORMAT
from raysere.search.ledger import Ledger
from raysere.search.study import save_study
from raysere.search.watch.overview import SearchEvents, write_overview
from raysere.search.watch.tensorboard import TrialEvents
from raysere.serving.watching import names

WEIGHTS = [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7]]
CONFUSION = np.array([[20, 3, 1], [2, 22, 0], [4, 4, 16]])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run of two studies with three finished trials, in TensorBoard."""
    run_dir = toy_run(tmp_path_factory.mktemp("server"))
    write_yaml(run_dir / "experiment.yaml", {"format": RUN_FORMAT, "name": "toy"})
    studies = [toy_study("toy"), toy_study("other")]
    writer, search = TrialEvents(run_dir), SearchEvents(run_dir, "stamp")
    cases = [(0, 0, 0.5, {"layers": "mix"}), (0, 1, 0.4, {"layers": "one", "layer": 1}), (1, 0, 0.7, {"layers": "mix"})]
    for moment, (at, number, score, params) in enumerate(cases):
        record = put(Ledger(run_dir), studies[at], number, {"lr": 0.01, "hidden": 16, **params}, score=score)
        rows = [{"epoch": epoch, "score": score - 0.1 * abs(1 - epoch)} for epoch in range(3)]
        if params["layers"] == "mix":
            rows = [{**row, "layer_weights.words": weights} for row, weights in zip(rows, WEIGHTS, strict=True)]
            record = replace(record, describe={"layer_weights": {"words": {"0": 0.4, "1": 0.6}}}, memory={"resident": 250_000_000})
        writer.write(record, studies[at], rows, CONFUSION)
        search.finished(record, 1000.0 + 30 * moment)
    search.close()
    for study in studies:
        save_study(run_dir, study)
    write_overview(run_dir, studies)
    with tensorboard(run_dir) as address:
        yield address


def scalars(url: str, run: str, tag: str) -> list[tuple[int, float]]:
    answer = ask(f"{url}data/plugin/scalars/scalars?{urlencode({'run': run, 'tag': tag})}")
    return [(step, round(value, 6)) for _, step, value in answer]


def test_runs_and_scalars(url: str) -> None:
    assert set(ask(f"{url}data/runs")) == {".", "toy", "toy/toy-0000", "toy/toy-0001", "other", "other/other-0000"}
    assert scalars(url, "toy/toy-0000", "dev/score") == [(0, 0.4), (1, 0.5), (2, 0.4)]
    assert scalars(url, "toy/toy-0000", "best/score") == [(1, 0.5)]
    assert scalars(url, "toy/toy-0000", "resources/seconds") == [(1, 2.0)]
    assert scalars(url, "toy/toy-0000", "resources/resident_memory_mb") == [(1, 250.0)]
    assert scalars(url, "toy/toy-0000", "layer_weights/words") == [(0, 0.4), (1, 0.6)]  # by layer


def test_the_search_as_a_whole(url: str) -> None:
    assert scalars(url, "toy", "search/best_score") == [(1, 0.5), (2, 0.5)]
    assert scalars(url, "other", "search/best_score") == [(1, 0.7)]
    assert scalars(url, ".", "search/trials_per_minute") == [(2, 2.0), (3, 2.0)]
    layout = ask(f"{url}data/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for category in layout["category"] for chart in category["chart"]}
    assert charts["score by epoch"] == ["dev/score"]
    assert charts["words"] == ["layer_weights/words"]


def test_images(url: str) -> None:
    tags = ask(f"{url}data/plugin/images/tags")
    assert set(tags["toy/toy-0000"]) == {"confusion", "layer_weights/words/by_epoch"}
    assert set(tags["toy/toy-0001"]) == {"confusion"}
    for tag in tags["toy/toy-0000"]:
        found = ask(f"{url}data/plugin/images/images?{urlencode({'run': 'toy/toy-0000', 'tag': tag, 'sample': 0})}")[0]
        with urllib.request.urlopen(f"{url}data/plugin/images/individualImage?{found['query']}", timeout=60) as answer:
            image = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")).astype(int)
        assert (image[..., 2] - image[..., 0]).max() > 80  # a dark blue cell
        assert (image.sum(-1) > 3 * 250).any()  # on paper


def test_hparams_have_the_columns_of_the_spaces(url: str) -> None:
    experiment = ask(f"{url}data/plugin/hparams/experiment", {"experimentName": ""})
    infos = {info["name"]: info for info in experiment["hparamInfos"]}
    assert infos["lr"]["domainInterval"] == {"minValue": 1e-4, "maxValue": 1e-1}  # of the space, not of the trials
    assert infos["hidden"]["domainDiscrete"] == [8.0, 16.0, 32.0]
    assert infos["layers"]["domainDiscrete"] == ["mix", "one"]
    assert infos["study"]["domainDiscrete"] == ["toy", "other"]
    assert (infos["study"]["differs"], infos["method"]["differs"]) == (True, False)
    shown = [info["displayName"] for info in experiment["metricInfos"]]
    assert shown == ["best uar", "best macro_f1", "best accuracy", "seconds", "MB of the worker"]
    groups = sessions(url)
    assert set(groups) == {"toy-0000", "toy-0001", "other-0000"}
    assert groups["toy-0001"]["hparams"] == {
        "study": "toy",
        "method": "pooled",
        "features": "words",
        "lr": 0.01,
        "hidden": 16.0,
        "layers": "one",
        "layer": 1.0,
    }
    values = {value["name"]["tag"]: round(value["value"], 4) for value in groups["other-0000"]["metricValues"]}
    assert values["best/score"] == 0.7
    assert values["resources/seconds"] == 2.0


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, None, 200),
        ({"Host": "localhost:6006"}, None, 200),
        ({"Host": "evil.example:6006"}, None, 403),  # DNS rebinding
        ({"Origin": "http://evil.example"}, b"{}", 403),
        ({"Origin": "null"}, b"{}", 403),
        ({"Sec-Fetch-Site": "cross-site"}, b"{}", 403),
    ],
)
def test_pages_of_other_sites_get_nothing(url: str, headers: dict[str, str], body: bytes | None, status: int) -> None:
    request = urllib.request.Request(f"{url}data/runs", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


def test_names_beyond_loopback_are_addresses_and_the_machine_s_own() -> None:
    named = names("0.0.0.0")
    assert all(map(named, ["10.0.0.7", "::1", "localhost", socket.gethostname().lower()]))
    assert not named("evil.example")
    assert names("127.0.0.1")("localhost")
    assert not names("127.0.0.1")("10.0.0.7")


def test_beyond_loopback_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = toy_run(tmp_path)
    write_yaml(run_dir / "experiment.yaml", {"format": RUN_FORMAT, "name": "toy"})
    monkeypatch.setattr("raysere.serving.watching.watch", lambda logs, host, port: 0)  # which would listen there
    for host, told in (("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("example.org", True)):
        result = CliRunner().invoke(cli, ["tensorboard", str(run_dir), "--host", host])
        assert result.exit_code == 0, result.output
        assert ("no token" in result.stderr) is told


def test_the_page_in_a_browser(url: str, tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    if shutil.which("chromium") is None:
        warnings.warn("THE PAGE OF TENSORBOARD IS NOT TESTED: no chromium on the PATH", stacklevel=1)
        pytest.skip("no chromium on the PATH")
    wanted = ["toy-0000", "toy-0001", "other-0000", "best uar", "seconds", "hidden"]
    text = look(f"{url}#hparams", wanted, tmp_path / "hparams")
    assert [part for part in wanted if part not in text] == []
    wanted = ["toy/toy-0000", "dev", "layer_weights", "resources", "confusion"]
    text = look(f"{url}#timeseries", wanted, tmp_path / "series")
    assert [part for part in wanted if part not in text] == []
