"""``docs/scale.md`` from ``benchmarks/results/scale.json``."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.scale.far import CLIP_S, EPOCHS, SIZES, TRIALS, extrapolated
from raysere.base.progress import duration
from raysere.cli.text import size
from raysere.pipeline import cluster_cost as scale

HEAD = f"""# Several nodes: what they cost, and where they stop paying

Written by `python -m benchmarks.scale` from `benchmarks/results/scale.json`; not edited by hand.

    raysere plan experiment.yaml --nodes 8 --gpu h100 --cores 16

estimates what an experiment costs on a cluster before anything runs: bytes, network, GPU hours and
wall time for 1, 2, 4, ... nodes. It also gives the number of nodes beyond which each further node
is worth less than half of a lone one. It measures each backbone on this machine for some seconds
and knows which features are stored already. The time of a trial comes from the trials that the run
has finished, or from `--trial-seconds`; otherwise it is a guess, and is called one.

A *node* is one machine of the cluster. The *driver* is the process of the command; it hands trials
to worker processes on the nodes.

## The model

    extract(N) = open + max(speech / (speed x workers), bytes read and written / network) + longest clip / speed
    fetch(N)   = bytes of features / min(link of a node, storage / N)
    search(N)  = begin + max(T (t + handover) / P + t (1 - 1/P) / 2, T x driver),      P = places for trials, at most T
    wall(N)    = start + extract(N) + fetch(N) + search(N) + ensemble

N is the number of nodes, T the number of trials and t the mean seconds of one trial.

| constant | value | |
| --- | --- | --- |
| start, open, begin | {scale.START_S:g}, {scale.OPEN_S:g}, {scale.BEGIN_S:g} s | rounded from `docs/performance.md` and first runs |
| handover, driver | {1000 * scale.HANDOVER_S:g}, {1000 * scale.DRIVER_S:g} ms | handover: `docs/performance.md`; driver: **assumed** |
| ensemble | {1e6 * scale.SELECT_S:g} us | `docs/performance.md`, for each trial and utterance |
| GPU | {scale.GPU_SHARE:g} of the data sheet's dense 16-bit rate; {scale.READERS} threads read for it | **assumed**, as no GPU was there |
| core | {scale.CORE_SHARE:g} of its measured rate of large products | `docs/performance.md` |
| link, storage | 10 and 20 Gbit/s | **assumed**; `--link`, `--storage` |

A trial on a quarter of a GPU is assumed to last as long as on one core: no GPU was there to correct
this.
"""


def draw(found: dict[str, Any]) -> str:
    parts = [HEAD]
    if found.get("runs"):
        parts.append(_runs(found["runs"]) + (f"\n{found['note']}\n" if found.get("note") else ""))
    if found.get("constants"):
        parts.append(_far(found["constants"]))
    return "\n".join(parts)


def _runs(rows: list[dict[str, Any]]) -> str:
    lines = [
        "## Against real runs of 1, 2 and 3 nodes",
        "",
        "The nodes are Ray nodes that run as processes of one machine with two cores. Each has one place for work and a disk of its own",
        "for what it fetches; the driver runs beside them. Backbone and trials *wait* instead of computing, as for a GPU elsewhere,",
        "since two cores cannot be three. Measured are whole commands, each from empty stores; figures are medians of",
        f"{1 + max(row['round'] for row in rows)} rounds. The model takes the mean trial of the first run on one node.",
        "",
        "| command | nodes | measured, s | model, s | model / measured | times as fast as one node | model |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage in ("extract", "tune"):
        middle = {nodes: _median(rows, stage, nodes, "measured") for nodes in (1, 2, 3)}
        model = {nodes: _median(rows, stage, nodes, "predicted") for nodes in (1, 2, 3)}
        for nodes in (1, 2, 3):
            every = sorted(row["measured"] for row in rows if row["stage"] == stage and row["nodes"] == nodes)
            lines.append(
                f"| `raysere {stage}` | {nodes} | {middle[nodes]:.1f} [{every[0]:.1f}, {every[-1]:.1f}] | {model[nodes]:.1f} | "
                f"{model[nodes] / middle[nodes]:.2f} | {middle[1] / middle[nodes]:.2f} | {model[1] / model[nodes]:.2f} |"
            )
    return "\n".join([*lines, ""])


def _median(rows: list[dict[str, Any]], stage: str, nodes: int, key: str) -> float:
    return statistics.median(row[key] for row in rows if row["stage"] == stage and row["nodes"] == nodes)


def _far(constants: dict[str, float]) -> str:
    lines = [
        "## Past this machine: 25 layers of WavLM-large",
        "",
        f"Measured on one core of this machine (random weights of WavLM-large's shape, float32): {constants['speed']:.2f} s of speech a "
        f"second, {constants['reading_speed']:.0f} s a second when audio is only read, and {constants['core_rate'] / 1e9:.0f} GFLOP/s of "
        f"large products. A trial of `pooled` on a learned mix of all 25 layers takes {1e6 * constants['row_epoch_s']:.0f} us for each "
        "row and epoch.",
        "",
        f"Assumed: clips of {CLIP_S} s on average, 70 % of them to train on, official splits (one fold), {TRIALS} trials of "
        f"{EPOCHS} epochs, and four trials at once on each GPU. Nodes have 16 cores, and one GPU where a GPU is named.",
        "",
        "| | " + " | ".join(SIZES) + " |",
        "| --- | " + " | ".join("---" for _ in SIZES) + " |",
    ]
    for kind, name in (
        ("utterance", "mean and deviation of a clip, float32"),
        ("chunk", "chunks of 1 s every .5 s, float16"),
        ("frame", "frames, float16"),
    ):
        cells = [size(hours * 3600 / CLIP_S * constants[f"{kind}_bytes"]) for hours in SIZES.values()]
        lines.append(f"| {name}, all layers | " + " | ".join(cells) + " |")
    for one in extrapolated(constants):
        cards = "cores only" if one["kind"] == "none" else one["kind"]
        lines += [
            "",
            f"**{one['corpus']}, {cards}**: a trial takes {duration(one['trials'][0]['seconds'])}; each "
            f"{'core' if one['kind'] == 'none' else 'GPU'} extracts {one['speeds']['wavlm']:.0f} s of speech a second; "
            f"up to {one['pays_up_to']} nodes pay.",
            "",
            "| nodes | wall | extract | fetch | search | ensemble | times as fast | node hours | GPU hours (busy) | network |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in one["rows"]:
            stages = [duration(row["seconds"][stage]) for stage in ("total", "extract", "fetch", "search", "ensemble")]
            gpu = f"{row['gpu_hours']:.0f} ({row['gpu_hours_busy']:.0f})" if one["kind"] != "none" else "-"
            cells = [str(row["nodes"]), *stages, f"{row['speedup']:.1f}", f"{row['node_hours']:.0f}", gpu, size(row["network_bytes"])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
