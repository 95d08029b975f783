"""cluster.yaml, Dockerfile and k8s/: they parse, fit the schemas there are, agree on versions, and
nothing listens without a token.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pathspec
import pytest
import yaml

from raysere.base import cluster
from raysere.cli.main import cli
from raysere.pipeline.job import SECRETS
from raysere.serving.deployment import Options
from raysere.serving.limits import read_limits

ROOT = Path(__file__).resolve().parent.parent
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
JOB = yaml.safe_load((ROOT / "k8s/rayjob.yaml").read_text())
SERVICE = yaml.safe_load((ROOT / "k8s/rayservice.yaml").read_text())
POLICIES = {policy["metadata"]["name"]: policy["spec"] for policy in yaml.safe_load_all((ROOT / "k8s/network.yaml").read_text())}
HEALTH = "/api/healthz"  # tests/test_jobs.py asks a Ray with tokens for it
CLAIM = yaml.safe_load((ROOT / "k8s/storage.yaml").read_text())
SPECS = {"job": JOB["spec"]["rayClusterSpec"], "service": SERVICE["spec"]["rayClusterConfig"]}


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def raysere_command(line: str) -> list[str]:
    """Words of a ``raysere`` line, after the parser of its command has taken them.

    Raises click's errors for what it does not know.
    """
    name, *rest = shlex.split(line)[1:]
    command = cli.commands[name]
    command.make_context(name, list(rest))
    return [name, *rest]


# --- the launcher ---------------------------------------------------------------------------------


def test_the_launcher_fits_the_schema_that_ray_ships():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(CLUSTER, json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text()))


def test_the_launcher_scales_asks_for_a_token_and_shares_its_storage():
    head, worker = (" ".join(CLUSTER[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert loopback(re.search(r"--dashboard-host=(\S+)", head)[1])
    assert any(place.endswith("/.ray/auth_token") for place in CLUSTER["file_mounts"])
    options = " ".join(CLUSTER["docker"]["run_options"])
    assert "--shm-size" in options
    storage = re.search(r"--env RAYSERE_STORAGE=(\S+)", options)[1]
    volume = re.search(r"--volume (\S+):(\S+)", options)
    assert storage.startswith(volume[2] + "/")
    assert any("mount " in line and volume[1] in line for line in CLUSTER["initialization_commands"])
    assert CLUSTER["idle_timeout_minutes"] > 0
    for name, kind in CLUSTER["available_node_types"].items():
        assert name == CLUSTER["head_node_type"] or 0 <= kind["min_workers"] < kind["max_workers"] <= CLUSTER["max_workers"]
    assert {"gpu", "cpu"} <= set(CLUSTER["available_node_types"])


def test_nodes_install_the_pinned_versions():
    for line in (CLUSTER["setup_commands"][0], DOCKERFILE):
        parts = re.findall(r"pip install ([^&\n]+)", line)
        assert parts
        assert all(
            "--constraint constraints.txt" in part or "--require-hashes" in part or part.split()[-2:] == [".", "\\"] for part in parts
        )


def test_the_image_takes_each_wheel_by_its_hash_and_only_torch_without():
    hashed, torch, own = re.findall(r"pip install ([^&\n]+?) \\\n", DOCKERFILE)
    assert {"--no-deps", "--require-hashes"} < set(hashed.split())
    assert hashed.endswith("--requirement requirements-image.txt")
    assert torch.split()[-1] == "torch"
    assert {"--no-deps", "--no-build-isolation"} < set(own.split())  # nothing is fetched besides
    extras = re.search(r"^# extras: (.+)$", DOCKERFILE, re.M)[1].split(",")
    assert {"serve", "cluster"} <= set(extras)


@pytest.mark.parametrize("name", [".gitignore", ".rayignore", ".dockerignore"])
def test_secrets_stay_out_of_git_jobs_and_images(name):
    lines = (ROOT / name).read_text().splitlines()
    prefix = "**/" if name == ".dockerignore" else ""  # whose patterns hold for one folder otherwise
    assert {prefix + pattern for pattern in SECRETS} <= set(lines)
    after = lines[lines.index(prefix + SECRETS[0]) :]
    assert not [line for line in after if line.startswith("!")]  # the last line that fits counts


def test_the_launcher_copies_no_secrets_but_the_token_of_ray(tmp_path):
    project, home = tmp_path / "checkout", tmp_path / "home"
    hidden = [
        "token",
        "deep/.env",
        "serve.token",
        "deep/tls.key",
        "deep/.ssh/id_rsa",
        ".git/config",
        ".venv/pyvenv.cfg",
        "runs/r/x",
        "tests/a.py",
    ]
    kept = ["raysere/cli/main.py", "experiments/demo.yaml", "constraints.txt", "deep/tokenizer.json"]
    for name in [*hidden, *kept]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    for name in CLUSTER["rsync_filter"]:
        shutil.copy(ROOT / name, project)
    patterns = [line for name in CLUSTER["rsync_filter"] for line in (ROOT / name).read_text().splitlines()]
    spec = pathspec.GitIgnoreSpec.from_lines([*CLUSTER["rsync_exclude"], *patterns])
    assert [name for name in [*hidden, *kept] if not spec.match_file(name)] == kept
    assert not pathspec.GitIgnoreSpec.from_lines(CLUSTER["rsync_exclude"]).match_file("auth_token")
    if shutil.which("rsync") is None:
        return
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("x")
    options = [word for pattern in CLUSTER["rsync_exclude"] for word in ("--exclude", pattern)]
    options += [word for name in CLUSTER["rsync_filter"] for word in ("--filter", f"dir-merge,- {name}")]  # as Ray's launcher calls it
    subprocess.run(["rsync", "-a", *options, f"{project}/", tmp_path / "node"], check=True)
    subprocess.run(["rsync", "-a", *options, home / ".ray/auth_token", tmp_path / "node/auth_token"], check=True)
    copied = {path.relative_to(tmp_path / "node").as_posix() for path in (tmp_path / "node").rglob("*") if path.is_file()}
    assert copied == {*kept, *CLUSTER["rsync_filter"], "auth_token"}


# --- versions -------------------------------------------------------------------------------------


def test_all_images_are_of_the_pinned_ray():
    images = [CLUSTER["docker"]["image"], re.search(r"^FROM (\S+)$", DOCKERFILE, re.M)[1]]
    images += [container["image"] for spec in SPECS.values() for pod in pods(spec) for container in pod["containers"]]
    images.append(re.search(r"--tag (\S+)", DOCKERFILE)[1])
    for image in images:
        assert re.search(rf"(:|-ray){re.escape(RAY)}(-|$)", image), image
    assert {spec["rayVersion"] for spec in SPECS.values()} == {RAY}
    assert images[0] == images[1]
    assert images[2] == images[-1]


def test_the_image_runs_as_a_user_and_offline():
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.M) == ["ray"]
    assert "HF_HUB_OFFLINE=1" in DOCKERFILE
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    assert f"{name}={cluster._LOCAL_SWITCHES[name]} " in DOCKERFILE  # proxies on a cluster answer as those of `raysere serve` do
    copied = re.findall(r"^COPY \S+ (.+) \S+$", DOCKERFILE, re.M)
    sources = {word for line in copied for word in line.split()}
    assert all((ROOT / source).exists() for source in sources)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == kept


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_pods_share_storage_scale_and_are_no_root(name):
    spec = SPECS[name]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for kind, group in groups.items():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (kind == "gpu")
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(spec):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert "emptyDir" in volumes["tmp"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shared": "/shared", "shm": "/dev/shm", "tmp": "/tmp"}
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["RAYSERE_STORAGE"].startswith("/shared/")
        assert f"RAYSERE_STORAGE={environment['RAYSERE_STORAGE']}" in DOCKERFILE
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    assert {JOB["apiVersion"], SERVICE["apiVersion"]} == {"ray.io/v1"}


@pytest.mark.parametrize("name", SPECS)
def test_no_dashboard_listens_beyond_loopback_without_a_token(name):
    spec = SPECS[name]
    if not loopback(spec["headGroupSpec"]["rayStartParams"].get("dashboard-host", "0.0.0.0")):  # KubeRay's default
        assert spec["authOptions"]["mode"] == "token"
        assert tuple(int(part) for part in spec["rayVersion"].split(".")) >= (2, 52)


SUBMITTER = JOB["spec"]["submitterPodTemplate"]


@pytest.mark.parametrize(
    "pod", [SUBMITTER["spec"], *(pod for spec in SPECS.values() for pod in pods(spec))], ids=lambda pod: pod["containers"][0]["name"]
)
def test_containers_gain_no_privileges_and_write_to_mounts_alone(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    head = pod["containers"][0]["name"] == "ray-head"
    assert head or pod["automountServiceAccountToken"] is False  # the head's autoscaler asks Kubernetes for pods
    for container in pod["containers"]:
        closed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
        assert container["securityContext"] == closed
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SPECS)
def test_the_autoscaler_gains_no_privileges(name):
    assert SPECS[name]["autoscalerOptions"]["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", SPECS)
def test_kubernetes_asks_each_pod_how_it_is(name):
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT as AGENT

    spec = SPECS[name]
    for pod in pods(spec):
        (container,) = pod["containers"]
        serves = name == "service" and container["name"] == "ray-worker"
        assert container["livenessProbe"]["httpGet"] == {"path": HEALTH, "port": AGENT}
        assert container["readinessProbe"]["httpGet"] == (
            {"path": "/-/healthz", "port": 8000} if serves else {"path": HEALTH, "port": AGENT}
        )
        assert container["livenessProbe"]["failureThreshold"] * container["livenessProbe"]["periodSeconds"] >= 300  # trials hold all cores


def test_only_own_pods_reach_ray_and_only_named_ones_the_service():
    templates = {
        "raysere-emodb": [SUBMITTER, *(group["template"] for group in (SPECS["job"]["headGroupSpec"], *SPECS["job"]["workerGroupSpecs"]))],
        "raysere": [group["template"] for group in (SPECS["service"]["headGroupSpec"], *SPECS["service"]["workerGroupSpecs"])],
    }
    assert set(POLICIES) == set(templates) == {JOB["metadata"]["name"], SERVICE["metadata"]["name"]}
    for name, policy in POLICIES.items():
        own = policy["podSelector"]["matchLabels"]
        assert all(own.items() <= template["metadata"]["labels"].items() for template in templates[name])
        assert policy["policyTypes"] == ["Ingress"]
        everything, *others = policy["ingress"]
        assert everything == {"from": [{"podSelector": {"matchLabels": own}}]}
        for rule in others:  # never from everywhere, never to all ports
            assert rule["ports"]
            assert all(source["podSelector"]["matchLabels"] for source in rule["from"])
            clients = not any("namespaceSelector" in source for source in rule["from"])
            assert {port["port"] for port in rule["ports"]} <= ({8000} if clients else {8000, 8265})
    assert POLICIES["raysere"]["podSelector"] != POLICIES["raysere-emodb"]["podSelector"]  # a search reaches no service, nor the other way


def test_the_job_runs_a_command_that_there_is():
    words = raysere_command(JOB["spec"]["entrypoint"])
    assert words[0] == "run"
    assert words[1].startswith("/shared/")
    assert "--allow-rejected" in words
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True


def test_the_service_is_what_the_deployment_takes():
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(SERVICE["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, attribute = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[attribute]), attribute))
    options = Options.model_validate(application.args)
    limits = read_limits(options.limits)
    assert options.ensemble.startswith("/shared/")
    assert config.http_options.request_timeout_s >= limits.request_s + limits.decode_s + 5  # as `raysere serve` has it
    for pod in pods(SPECS["service"]):
        token = next(entry for entry in pod["containers"][0]["env"] if entry["name"] == "RAYSERE_TOKEN")
        assert token["valueFrom"]["secretKeyRef"]  # never written into the file
        assert {"name": "serve", "containerPort": config.http_options.port} in pod["containers"][0]["ports"]
