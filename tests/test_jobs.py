"""``raysere submit`` against a real Ray head with a dashboard and a token: the line, the exit code,
a job that is stopped and resumed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from raysere.base.errors import ConfigError, EnvironmentFault, MissingFileError
from raysere.base.files import read_json
from raysere.pipeline import job as jobs
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.job import prepare_submission, submit, upload
from raysere.search.ledger import Ledger
from raysere.serving.deployment import free_port
from tests.end_to_end.toy import experiment, make_corpus

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TRIALS = 8


# --- what is sent, and under which line (no cluster) ----------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder as a user has it: an experiment with relative folders, a corpus, output of earlier
    runs.
    """
    monkeypatch.delenv("RAYSERE_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    make_corpus(tmp_path / "corpus", speakers=2, takes=1)
    experiment(tmp_path, Path("corpus/table.csv"), runs="runs", store="features")
    for name in ("runs/toy/model.safetensors", "features/key/layer.npy", "notebooks/a.ipynb", ".venv/bin/python", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_the_line_can_be_pasted_and_moves_relative_folders_to_the_storage(project):
    job = prepare_submission(Path("toy.yaml"), storage=Path("/shared/a b"), overrides=["search.0.trials=3"])
    assert shlex.split(job.line) == job.command
    assert job.command[:7] == ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", "."]
    raysere = job.command[job.command.index("--") + 1 :]
    moved = ["--set", "runs=/shared/a b/runs", "--set", "store=/shared/a b/features"]
    assert raysere == ["raysere", "run", "toy.yaml", "--allow-rejected", "--set", "search.0.trials=3", *moved]
    overrides = [raysere[place + 1] for place, word in enumerate(raysere) if word == "--set"]
    assert load_experiment("toy.yaml", overrides).run_folder == Path("/shared/a b/runs/toy")
    assert not {"pip", "uv", "conda"} & set(re.findall(r"\w+", job.line))  # nothing is resolved again on each node
    assert job.warnings == []


def test_a_storage_whose_name_is_no_plain_yaml_arrives_whole(project):
    job = prepare_submission(Path("toy.yaml"), storage=Path("/shared/a #b"))
    overrides = [job.command[place + 1] for place, word in enumerate(job.command) if word == "--set"]
    assert load_experiment("toy.yaml", overrides).run_folder == Path("/shared/a #b/runs/toy")


def test_nothing_lasts_without_storage(project, monkeypatch):
    with pytest.raises(ConfigError, match="`runs: runs` is relative.*--storage"):
        prepare_submission(Path("toy.yaml"))
    with pytest.raises(ConfigError, match="from its root on"):
        prepare_submission(Path("toy.yaml"), storage=Path("shared"))
    absolute = prepare_submission(Path("toy.yaml"), overrides=["runs=/s/runs", "store=/s/features"])
    assert absolute.command[-4:] == ["--set", "runs=/s/runs", "--set", "store=/s/features"]


def test_what_is_sent(project):
    job = prepare_submission(Path("toy.yaml"), storage=Path("/s"))
    assert {name.split("/")[0] for name in job.files} == {"toy.yaml", "corpus", "notebooks"}  # earlier output never travels
    assert json.loads(job.command[job.command.index("--runtime-env-json") + 1]) == {"excludes": ["/runs", "/features", *jobs.SECRETS]}
    assert job.secrets == []
    (project / ".rayignore").write_text("/notebooks/\n/runs/\n/features/\n")
    (project / "corpus/.gitignore").write_text("s1_*\n!s1_anger_0.wav\n")  # counts for what is below it alone
    (project / "s1_b").write_text("x")
    sent = upload(project)
    assert {"s1_b", "corpus/s1_anger_0.wav", "corpus/s0_anger_0.wav"} <= set(sent)
    assert not [name for name in sent if name.startswith(("notebooks", "runs", "features", ".venv", ".git/", "corpus/s1_neutral"))]


def test_ray_sends_the_same_files(project):
    from ray._private.runtime_env import packaging

    (project / ".rayignore").write_text("/notebooks/\n*.npy\n")
    (project / "corpus/.rayignore").write_text("s0_*\n")
    (project / "corpus/deeper/runs").mkdir(parents=True)
    (project / "corpus/deeper/runs/kept").write_text("x")
    (project / "corpus/deeper/layer.npy").write_text("x")  # the pattern of the folder above counts here, too
    taken: list[Path] = []
    excludes = packaging._get_excludes(project, [".git", ".venv", "venv", "__pycache__", "/runs", "/features"])
    packaging._dir_travel(project, [excludes], taken.append, include_gitignore=True)
    assert {path.relative_to(project).as_posix() for path in taken if path.is_file()} == set(upload(project, ["/runs", "/features"]))


def packed(folder: Path, excludes: list[str], target: Path) -> set[str]:
    """Names in the package that Ray makes of a folder and would send."""
    from ray._private.runtime_env import packaging

    packaging.create_package(str(folder), target, include_gitignore=True, excludes=[*jobs._ALWAYS_OUT, *excludes])
    return {name for name in zipfile.ZipFile(target).namelist() if not name.endswith("/")}


@pytest.mark.parametrize("own", ["", "!token\n!.env\n"])  # a user's file of patterns takes nothing back
def test_no_token_key_or_password_is_sent(project, tmp_path_factory, own):
    word = secrets.token_hex(32)
    hidden = {
        **dict.fromkeys(["token", "auth_token", "serve.token", "my-token.txt", "corpus/token"], word + "\n"),  # as `openssl rand` writes it
        **dict.fromkeys(["for the server", "corpus/[1] #x!.txt", "x.cfg"], word),  # a name that does not tell
        **dict.fromkeys([".env", ".env.local", "prod.env", "deploy/.envrc", "secrets.yaml", "client_secret_7.json"], f"PASSWORD={word}"),
        **dict.fromkeys([".ssh/config", ".aws/credentials", ".netrc", ".kube/config", "id_ed25519", "tls.key", "a.pem"], "x y"),
        "corpus/plain.txt": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{word}\n",
    }
    for name, text in hidden.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    kept = {"tokenizer.json": "{}", "corpus/special_tokens_map.json": "{}", "keys.py": "x = 1", "revision.txt": "a short word", "empty": ""}
    for name, text in kept.items():
        (project / name).write_text(text)
    if own:
        (project / ".rayignore").write_text(own)
    job = prepare_submission(Path("toy.yaml"), storage=Path("/s"))
    excludes = json.loads(job.command[job.command.index("--runtime-env-json") + 1])["excludes"]
    sent = packed(project, excludes, tmp_path_factory.mktemp("sent") / "package.zip")
    assert not set(hidden) & sent
    assert sent == set(job.files)
    assert {"toy.yaml", *kept} <= sent
    assert set(job.secrets) == set(hidden)


def test_what_is_left_out_as_a_secret_is_told(project):
    (project / "token").write_text(secrets.token_hex(32))
    found = subprocess.run(
        [sys.executable, "-m", "raysere", "submit", "toy.yaml", "--storage", "/s", "--dry-run"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "Not sent, because it looks like a secret: token\n" in found.stderr
    (project / "secrets.yaml").write_text((project / "toy.yaml").read_text())
    with pytest.raises(ConfigError, match="looks like a secret.*another name"):
        prepare_submission(Path("secrets.yaml"), storage=Path("/s"))


def test_an_experiment_that_would_not_arrive_is_refused(project, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    shutil.copy("toy.yaml", outside)
    with pytest.raises(ConfigError, match=f"--working-dir {outside}"):
        prepare_submission(outside / "toy.yaml", storage=Path("/s"))
    (project / ".gitignore").write_text("/demo/\n")
    (project / "demo").mkdir()
    shutil.copy("toy.yaml", "demo")
    with pytest.raises(ConfigError, match="--working-dir demo"):
        prepare_submission(Path("demo/toy.yaml"), storage=Path("/s"))
    assert "demo/toy.yaml" not in prepare_submission(Path("demo/toy.yaml"), storage=Path("/s"), working_dir=Path("demo")).files


def test_paths_that_do_not_travel_are_said(project, tmp_path_factory):
    (project / ".rayignore").write_text("/corpus/\n")
    overrides = ["search.0.space=../spaces/mine.yaml", "features.acoustic.backbone=table:../x.parquet"]
    raw = prepare_submission(Path("toy.yaml"), storage=Path("/s"), overrides=overrides)
    assert [line.split(":")[0] for line in raw.warnings] == ["corpora.0.path", "features.acoustic.backbone", "search.0.space"]
    assert "left out" in raw.warnings[0]
    assert "leaves the folder" in raw.warnings[1] + raw.warnings[2]


def test_what_an_experiment_reads_is_known():
    backbones = {"a": "table:x.parquet", "b": "hf:./model#revision", "c": "hf:microsoft/wavlm-base", "d": "acoustic"}
    raw = {
        "corpora": [{"path": "emodb"}],
        "features": {name: {"backbone": backbone} for name, backbone in backbones.items()},
        "search": [{"space": "pooled"}, {"space": "spaces/mine"}, {"space": "mine.yml"}],
    }
    assert dict(jobs._paths(raw)) == {
        "corpora.0.path": "emodb",
        "features.a.backbone": "x.parquet",
        "features.b.backbone": "./model",
        "search.1.space": "spaces/mine",
        "search.2.space": "mine.yml",
    }


def test_more_than_ray_takes_is_refused_with_the_largest_folders(project, monkeypatch):
    monkeypatch.setattr("raysere.pipeline.job.LIMIT_BYTES", 50_000)
    with pytest.raises(ConfigError, match=r"largest so far: corpus .*\n?.*"):
        upload(project)


def test_the_checkout_sends_code_and_spaces_alone():
    sent = upload(ROOT)
    assert {"raysere/cli/main.py", "search_spaces/pooled.yaml", "experiments/demo.yaml", "pyproject.toml"} <= set(sent)
    out = ("features/", "runs/", "demo/", "notebooks/", ".venv/", "tests/", "docs/", "benchmarks/", ".git/")
    assert not [name for name in sent if name.startswith(out)]
    assert sum(sent.values()) < 8 << 20


def test_no_cluster_is_one_message(project):
    job = prepare_submission(Path("toy.yaml"), storage=Path("/s"))
    with pytest.raises(EnvironmentFault, match="No cluster answers"):
        submit(job, address=f"http://127.0.0.1:{free_port('127.0.0.1')}", say=print)
    with pytest.raises(ConfigError, match="URL"):
        submit(job, address="127.0.0.1:8265", say=print)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", 1, 130),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 137, 3),
        ("FAILED", None, 3),
    ],
)
def test_the_exit_code_is_the_one_that_the_job_earned(project, monkeypatch, status, driver, code):
    ray = project / "ray"
    ray.write_text('#!/bin/sh\necho "Job \'raysubmit_abc\' submitted successfully"\necho "$@"\n')
    ray.chmod(0o755)
    asked, said = [], []
    details = SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=driver)
    monkeypatch.setattr(jobs, "_ray", lambda: str(ray))
    monkeypatch.setattr(jobs, "_client", lambda address: SimpleNamespace(get_job_info=lambda job: asked.append(job) or details))
    submission = prepare_submission(Path("toy.yaml"), storage=Path("/s"))
    assert submit(submission, address="http://x", say=said.append) == code
    assert asked == ["raysubmit_abc"]
    assert said[1].split()[:2] == ["job", "submit"]
    accepted = prepare_submission(Path("toy.yaml"), storage=Path("/s"), no_wait=True)
    assert submit(accepted, address="http://x", say=said.append) == 0
    assert asked == ["raysubmit_abc"]  # how it ends is not waited for
    ray.write_text("#!/bin/sh\necho refused\n")
    with pytest.raises(EnvironmentFault, match="did not take"):
        submit(accepted, address="http://x", say=said.append)


def test_a_missing_file_is_explained_in_jobs_alone(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert jobs.job_hint(MissingFileError("gone")) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "This is a job on the node" in jobs.job_hint(MissingFileError("gone"))
    assert jobs.job_hint(ConfigError("wrong")) is None


def test_relative_folders_lie_in_the_storage_of_the_environment(project, monkeypatch):
    assert load_experiment("toy.yaml").run_folder == Path("runs/toy")
    monkeypatch.setenv("RAYSERE_STORAGE", "/shared")
    found = load_experiment("toy.yaml", ["store=/elsewhere"])
    assert (found.run_folder, found.store_folder) == (Path("/shared/runs/toy"), Path("/elsewhere"))
    monkeypatch.setenv("RAYSERE_STORAGE", "shared")
    with pytest.raises(ConfigError, match="RAYSERE_STORAGE"):
        _ = load_experiment("toy.yaml").run_folder


def test_a_job_writes_only_where_it_lasts(project, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="is a folder of the job"):
        load_experiment("toy.yaml")
    unpacked = project / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    with pytest.raises(ConfigError, match="`store: "):
        load_experiment("toy.yaml", ["runs=/s/runs", f"store={unpacked}/features"])
    load_experiment("toy.yaml", ["runs=/s/runs", "store=/s/features"])
    monkeypatch.setenv("RAYSERE_STORAGE", "/s")
    load_experiment("toy.yaml")


def test_the_doctor_sees_a_ray_that_anybody_can_use(tmp_path, monkeypatch):
    from raysere.cli import doctor

    def process(number: int, *words: str, **environment: str) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cmdline").write_text("\0".join(words))
        (folder / "environ").write_text("\0".join(f"{key}={value}" for key, value in ({"HOME": str(tmp_path)} | environment).items()))

    dashboard, head = ("python", "/site-packages/ray/dashboard/dashboard.py"), "/site-packages/ray/core/src/ray/gcs/gcs_server"
    process(1, *dashboard, "--host=0.0.0.0", "--port=8265")
    process(2, *dashboard, "--host=0.0.0.0", RAY_AUTH_MODE="token")
    process(3, *dashboard, "--host=127.0.0.1")
    process(4, *dashboard, "--host=10.0.0.2", RAY_AUTH_MODE="disabled")
    process(5, head, "--node-ip-address=10.0.0.3", RAY_AUTH_MODE="disabled")
    process(6, head, "--node-ip-address=127.0.0.1", RAY_AUTH_MODE="token")
    seen = doctor._doors(tmp_path)
    assert sorted(host for _, host, _ in seen) == ["0.0.0.0", "0.0.0.0", "10.0.0.2", "10.0.0.3", "127.0.0.1", "127.0.0.1"]
    monkeypatch.setattr(doctor, "_doors", lambda: sorted(seen, key=lambda door: door[:2]))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    subjects = [(one.subject, one.level) for one in doctor._cluster()]
    assert subjects == [("ray cluster", "ok"), ("ray cluster", "note"), *[("ray dashboard", "note")] * 2, ("ray head", "note")]
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("t")  # Ray takes it without being told, unless it is told not to
    assert [one.text.split()[2] for one in doctor._cluster() if one.level == "note"] == ["10.0.0.2", "10.0.0.3"]


def test_a_local_ray_asks_for_a_token_of_its_own_and_a_cluster_keeps_its_authentication(monkeypatch):
    import ray

    from raysere.base import cluster

    cluster.stop_ray()  # whatever other tests left
    given = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.append({**options, "environment": dict(os.environ)}))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in (*cluster._SWITCHES, *cluster._LOCAL_SWITCHES):
        monkeypatch.setenv(name, "x")  # so that what is set is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # of the cluster
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the cluster")
    cluster.start_ray()
    assert given[0]["address"] == "10.0.0.1:6379"
    assert "_node_ip_address" not in given[0]
    assert given[0]["environment"]["RAY_AUTH_MODE"] == "disabled"
    assert given[0]["environment"]["RAY_AUTH_TOKEN"] == "of the cluster"
    monkeypatch.delenv("RAY_ADDRESS")
    tokens = []
    for _ in range(2):
        cluster.start_ray()
        local, before = given[-1], dict(os.environ)
        token = Path(local["environment"]["RAY_AUTH_TOKEN_PATH"])
        assert local["address"] == "local"
        assert local["_node_ip_address"] == "127.0.0.1"
        assert local["environment"]["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in local["environment"]
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.parent.stat().st_mode & 0o777 == 0o700
        tokens.append(token.read_text())
        cluster.stop_ray()
        assert not token.parent.exists()
        assert before["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert os.environ["RAY_AUTH_TOKEN"] == "of the cluster"
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) == 64

    cluster.start_ray()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # and the local one was ended by others
    cluster.start_ray()
    assert given[-1]["environment"]["RAY_AUTH_TOKEN"] == "of the cluster"
    monkeypatch.setenv("RAY_ADDRESS", "local")  # no cluster, whatever it looks like
    cluster.start_ray()
    assert given[-1]["_node_ip_address"] == "127.0.0.1"
    cluster.stop_ray()

    def fails(**options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(EnvironmentFault, match="Ray does not start"):
        cluster.start_ray()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"  # the environment is as before


# --- a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A head of its own with a dashboard and a token; gives its URL and the environment of a
    client.
    """
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # short: Ray's sockets have long names
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYSERE_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "runtime-env-agent-port")
    ports = {name: free_port("127.0.0.1") for name in names}
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    command += [f"--temp-dir={folder}", "--object-store-memory=200000000", *(f"--{name}={port}" for name, port in ports.items())]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    started: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(
            [BIN / "ray", "job", "list", "--address", address], env=environment, capture_output=True, timeout=60
        ).returncode:
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield address, environment | {"AGENT": f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}"}
    finally:
        started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()
        for process in psutil.wait_procs(started, timeout=10)[1]:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A project with relative folders and a corpus with one broken file, and the storage that the
    cluster has.
    """
    folder = tmp_path_factory.mktemp("project")
    table = make_corpus(folder / "corpus", speakers=3, takes=2, text=False)
    (folder / "corpus/s0_anger_0.wav").write_bytes(b"not audio")
    long = {"hidden": 16, "epochs": 400, "patience": 400, "batch": 16}  # a second or two a trial: time to stop a job between two
    search = [{"space": "pooled_quick", "features": "acoustic", "trials": TRIALS, "fixed": long}]
    experiment(folder, table.relative_to(folder), runs="runs", store="features", features={"acoustic": {"backbone": "acoustic"}},
               search=search, halving=None)  # fmt: skip
    return folder, tmp_path_factory.mktemp("shared")


def job_log(output: str) -> str:
    """The part of what `ray job submit` prints that is the job's own log."""
    return output[output.index("Running entrypoint") : output.index("Report:")]


def raysere_submit(cluster, folder: Path, *arguments: str) -> subprocess.Popen:
    address, environment = cluster
    command = [sys.executable, "-m", "raysere", "submit", "toy.yaml", "--address", address, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def done(process: subprocess.Popen) -> tuple[int, str]:
    try:
        output = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    return process.returncode, output


@pytest.mark.timeout(500)
def test_a_job_that_is_stopped_is_resumed_by_the_same_line(cluster, sent):
    address, environment = cluster
    folder, shared = sent
    run = shared / "runs/toy"
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    first = raysere_submit(cluster, folder, "--storage", str(shared))
    deadline = time.monotonic() + 200
    while len(Ledger(run).ids()) < 2:
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (job,) = client.list_jobs()
    client.stop_job(job.submission_id)  # what `ray job stop` calls, without the seconds in which that command starts
    code, output = done(first)
    assert code == 130, output
    assert "Interrupted. Finished work is kept" in output
    assert "SIGTERM received" not in output  # a trace of Ray's
    finished = {trial: (run / "trials" / trial / "DONE").stat().st_ino for trial in Ledger(run).ids()}
    assert 2 <= len(finished) < TRIALS, output
    assert not (run / "evaluation.json").exists()
    printed = next(line for line in output.splitlines() if line.startswith("ray job submit"))

    line = subprocess.Popen(printed, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    code, output = done(line)  # as pasted
    assert code == 0, output
    after = {trial: (run / "trials" / trial / "DONE").stat().st_ino for trial in Ledger(run).ids()}
    assert {trial: after[trial] for trial in finished} == finished
    assert len(after) == TRIALS
    assert f"search: {TRIALS - len(finished)} of {TRIALS} trials are to run" in output
    assert read_json(run / "evaluation.json")["format"]
    assert not (folder / "runs").exists()
    log = job_log(output)
    assert "\x1b" not in log  # plain lines
    assert "\r" not in log
    assert "s0_anger_0.wav" in log  # a rejected input is listed, and does not make the job fail


@pytest.mark.timeout(300)
def test_a_failing_job_says_what_is_missing_where(cluster, sent):
    folder, shared = sent
    code, output = done(
        raysere_submit(cluster, folder, "--storage", str(shared), "--set", "corpora.0.path=/nowhere/table.csv", "--set", "name=other")
    )
    assert code == 2, output
    assert "Where: /nowhere/table.csv" in output
    assert "This is a job on the node" in output
    assert not (shared / "runs/other/experiment.yaml").exists()


@pytest.mark.timeout(300)
def test_the_plain_line_of_ray_tells_where_nothing_lasts(cluster, sent):
    address, environment = cluster
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "raysere", "run", "toy.yaml"]
    found = subprocess.run(command, cwd=sent[0], env=environment, capture_output=True, text=True, timeout=200)
    assert found.returncode == 1
    assert "is a folder of the job" in found.stdout + found.stderr


def test_probes_of_kubernetes_need_no_token(cluster):
    agent = cluster[1]["AGENT"]
    pods = yaml.safe_load((ROOT / "k8s/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    probe = pods["containers"][0]["livenessProbe"]["httpGet"]
    with urllib.request.urlopen(agent + probe["path"], timeout=30) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster[0]}/api/jobs/", timeout=30)


@pytest.mark.timeout(120)
def test_without_the_token_nothing_is_submitted(cluster, sent):
    folder, shared = sent
    address, environment = cluster
    stranger = {key: value for key, value in environment.items() if not key.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    code, output = done(raysere_submit((address, stranger), folder, "--storage", str(shared)))
    assert code == 3, output
    assert "asks for its token" in output
    assert "Traceback" not in output
