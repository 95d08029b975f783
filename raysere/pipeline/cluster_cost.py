"""The cost of a run on a cluster: bytes, network, GPU hours and wall time by number of nodes.

With N nodes of w extraction workers and s places for trials each::

    extract(N) = open + max(speech / (speed min(N w, items)), bytes read and written / network(N)) +
    longest clip / speed
    fetch(N)   = bytes of features that trials read / min(link, storage / N)
    search(N)  = begin + max(T (t + handover) / P + t (1 - 1 / P) / 2, T driver),   P = min(N s, T)
    wall(N)    = start + sum of extract(N) over features + fetch(N) + search(N) + ensemble
    network(N) = min(N link, storage)

``t`` is the mean trial of the T that are left; half a trial is lost at the end, when not every
place has work. Constants of start, search and ensemble are rounded from the benchmarks of
``docs/performance.md`` (two cores) and held against runs in ``docs/scale.md``; what ``ASSUMED``
names was never measured, and comes from no paper. No Ray in here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from raysere.base.errors import ConfigError

START_S, OPEN_S, BEGIN_S = 9.0, 6.0, 4.0  # imports and connection; a worker with a backbone; a search to its first trial
DRIVER_S, HANDOVER_S = 0.03, 0.03  # of the driver for each trial; between two trials of one place
SELECT_S = 1.2e-6  # of the ensemble, for each trial and utterance: 6 s for 200 trials of 25,000
CORE_SHARE = 0.54  # of the rate of large float32 products that an encoder reaches on a core
GPU_SHARE = 0.2  # of the 16-bit rate that a vendor states, on a GPU
READERS = 4  # threads that read audio for one GPU
TRIAL_S = 1e-4  # for each row, epoch and fold, where no trial has finished: from 1e-6 to 6e-4 were seen
PAYS = 0.5  # of a node's time must be worth something
MOST_NODES = 4096
ASSUMED = ("speed on a GPU", "link", "storage", "what a trial costs the driver", "nodes like this machine's cores")


#: 10^12 dense 16-bit tensor operations a second, by the vendors' data sheets.
GPUS = {"none": 0.0, "t4": 65.0, "l4": 121.0, "a10g": 70.0, "a100": 312.0, "h100": 989.0, "h200": 989.0}


@dataclass(frozen=True)
class Cluster:
    """Nodes that are alike. ``link`` of a node and ``storage`` as a whole are in bytes a second."""

    nodes: int
    gpu: str = "none"
    gpus: int = 1
    cores: int = 16
    link: float = 10e9 / 8
    storage: float = 20e9 / 8

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"There is no GPU kind {self.gpu!r}", choices=sorted(GPUS))
        for name, least in (("nodes", 1), ("gpus", 1), ("cores", 1), ("link", 1), ("storage", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"A cluster has at least {least} {name}, not {getattr(self, name)}")
        if self.nodes > MOST_NODES:
            raise ConfigError(f"At most {MOST_NODES} nodes are priced, not {self.nodes}")

    @property
    def has_gpu(self) -> bool:
        return self.gpu != "none"


@dataclass(frozen=True)
class Encoding:
    """One feature that is still to be extracted.

    Attributes:
        speech_s, items, longest_s: seconds of speech, clips, and the longest clip.
        core_speed: seconds of speech a second of one core. reading_speed: the same of one thread
            that only decodes audio.
        core_rate: float32 operations a second of large products on that core.
        read, write: bytes of audio and of features.
        scales: whether a GPU makes it faster (the ``hf:`` encoders); of others a GPU is taken to be
            worth one core.
    """

    name: str
    speech_s: float
    items: int
    longest_s: float
    core_speed: float
    reading_speed: float = float("inf")
    core_rate: float = 100e9
    read: float = 0.0
    write: float = 0.0
    scales: bool = True

    def speed(self, cluster: Cluster) -> float:
        """Seconds of speech a second of one worker: a core, or a GPU with its readers."""
        if not cluster.has_gpu or not self.scales:
            return self.core_speed
        gpu = self.core_speed * GPUS[cluster.gpu] * 1e12 * GPU_SHARE / (self.core_rate * CORE_SHARE)
        return min(gpu, READERS * self.reading_speed)


@dataclass(frozen=True)
class Trials:
    """``count`` trials that are left of a study, ``seconds`` each in the mean, and how that is
    known.
    """

    name: str
    count: int
    seconds: float
    source: str


@dataclass(frozen=True)
class Load:
    """All work that is left of an experiment.

    Attributes:
        fetch: bytes of the store that each node reads.
        utterances: how many go into the ensemble.
        cpu, gpu: shares of one trial. concurrent: trials at once at the most; None: as many as
            there is room for.
        workers: extraction workers at the most.
    """

    encodings: tuple[Encoding, ...]
    trials: tuple[Trials, ...]
    fetch: float
    utterances: int
    cpu: int = 1
    gpu: float = 0.0
    concurrent: int | None = None
    workers: int | None = None


def wall(load: Load, cluster: Cluster) -> dict[str, float]:
    """Seconds of each stage on that cluster, ``total`` last.

    Raises ConfigError where no node has room for one trial.
    """
    network = min(cluster.nodes * cluster.link, cluster.storage)
    extract = 0.0
    for one in load.encodings:
        speed = one.speed(cluster)
        places = cluster.nodes * (cluster.gpus if cluster.has_gpu else cluster.cores)
        workers = min(places, one.items, load.workers or places)
        extract += OPEN_S + max(one.speech_s / (speed * workers), (one.read + one.write) / network) + one.longest_s / speed
    count = sum(one.count for one in load.trials)
    work = sum(one.count * one.seconds for one in load.trials)
    fetch = search = 0.0
    if count:
        places = min(cluster.nodes * slots(load, cluster), count, load.concurrent or count)
        fetch = load.fetch / min(cluster.link, cluster.storage / cluster.nodes)
        busy = (work + count * HANDOVER_S) / places + work / count * (1 - 1 / places) / 2
        search = BEGIN_S + max(busy, count * DRIVER_S)
    select = SELECT_S * count * load.utterances
    total = START_S + extract + fetch + search + select
    return {"start": START_S, "extract": extract, "fetch": fetch, "search": search, "ensemble": select, "total": total}


def slots(load: Load, cluster: Cluster) -> int:
    """Trials that one node holds at once. Raises ConfigError where it holds none."""
    rooms = [cluster.cores // load.cpu]
    if load.gpu:
        rooms.append(int((cluster.gpus if cluster.has_gpu else 0) / load.gpu + 1e-6))
    if min(rooms) < 1:
        raise ConfigError(
            f"No room for a trial of {load.cpu} CPU and {load.gpu:g} GPU on a node of {cluster.cores} cores "
            f"and {cluster.gpus if cluster.has_gpu else 0} GPUs",
            remedy="Name --gpu KIND (and --gpus, --cores), or ask for less under `trial:` in the experiment.",
        )
    return min(rooms)


def paying(load: Load, cluster: Cluster) -> int:
    """The most nodes of which each is still worth more than half of a lone one: wall(1) / (N
    wall(N)) > 1/2; it falls with N.
    """
    alone = wall(load, _with(cluster, 1))["total"]
    low, high = 1, MOST_NODES
    while low < high:
        middle = (low + high + 1) // 2
        if alone / (middle * wall(load, _with(cluster, middle))["total"]) > PAYS:
            low = middle
        else:
            high = middle - 1
    return low


def priced(load: Load, cluster: Cluster) -> dict[str, Any]:
    """The price as plain JSON: by number of nodes, the powers of two up to the one asked for, and
    beyond which none pays.
    """
    counts = sorted({1 << power for power in range(13) if 1 << power < cluster.nodes} | {1, cluster.nodes})
    alone = wall(load, _with(cluster, 1))["total"]
    rows = []
    for nodes in counts:
        other = _with(cluster, nodes)
        stages = wall(load, other)
        gpus = nodes * cluster.gpus if cluster.has_gpu else 0
        rows.append(
            {
                "nodes": nodes,
                "seconds": stages,
                "speedup": alone / stages["total"],
                "node_hours": nodes * stages["total"] / 3600,
                "gpu_hours": gpus * stages["total"] / 3600,
                "gpu_hours_busy": _busy(load, other) / 3600,
                "network_bytes": sum(one.read + one.write for one in load.encodings) + nodes * load.fetch * bool(load.trials),
            }
        )
    limit, count = paying(load, cluster), sum(one.count for one in load.trials)
    at_once = min(cluster.nodes * slots(load, cluster), load.concurrent or count) if count else 0
    return {
        "cluster": asdict(cluster),
        "rows": rows,
        "pays_up_to": limit,
        "written_bytes": sum(one.write for one in load.encodings),
        "trials": [asdict(one) for one in load.trials],
        "speeds": {one.name: one.speed(cluster) for one in load.encodings},
        "trials_at_once": at_once,
        "assumed": list(ASSUMED) if cluster.has_gpu else list(ASSUMED[1:]),
    }


def _busy(load: Load, cluster: Cluster) -> float:
    """Seconds of whole GPUs in which something runs on them."""
    if not cluster.has_gpu:
        return 0.0
    encoding = sum(one.speech_s / one.speed(cluster) for one in load.encodings)
    return encoding + load.gpu * sum(one.count * one.seconds for one in load.trials)


def _with(cluster: Cluster, nodes: int) -> Cluster:
    return Cluster(nodes, cluster.gpu, cluster.gpus, cluster.cores, cluster.link, cluster.storage)


def guess_seconds(rows: int, folds: int, epochs: int) -> float:
    """Seconds of a trial of which nothing is known but how many rows, folds and epochs (at most) it
    has: perhaps ten times wrong.
    """
    return TRIAL_S * rows * folds * epochs
