"""``python -m benchmarks.serving ENSEMBLE --clips FOLDER [--only load|overload|kill|soak|fuzz|siege
...]``: the server under load.

All of it is on loopback. Beside ``raysere serve`` stands the same ensemble behind a plain FastAPI
application, in the same run, with the same clips: as it comes, with one thread of torch for each
request, and with requests that take turns at the model; ratios are against the fastest. Every part
is bounded. Writes ``benchmarks/results/serving.json``, and its tables into ``docs/serving.md``.

Predicted before the first run (two cores, demo ensemble of 27 members): a batch of 16 takes a third
of the time of 16 calls, so three times the plain application's requests a second at 16 clients,
less what Serve's proxy costs on the same two cores; no gain at 1 client. Before the first run in
turn: as many a second at any number of clients as at one, so that the gain at 16 clients falls from
4.5 to 2.3 times, and everybody of 64 waits for six seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import machine
from benchmarks.serving.client import Tally, closed, new_session, opened, send, send_json
from benchmarks.serving.siege import besiege
from raysere.base.files import read_json, write_json
from raysere.serving.deployment import free_port
from raysere.testing.uploads import mutated, seeds, wrong_body

HERE = Path(__file__).resolve().parent.parent
RESULT = HERE / "results" / "serving.json"
PAGE = HERE.parent / "docs" / "serving.md"
LOAD, SIEGE = "| clients | ", "| under siege | "  # how tables in that page begin
PARTS = ("load", "overload", "kill", "soak", "fuzz", "siege")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("ensemble", type=Path)
    parser.add_argument("--clips", type=Path, required=True, help="folder of audio files; up to 256 of them are sent in turn")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "page"], default=list(PARTS), help="page: only draw the tables again")
    parser.add_argument("--seconds", type=float, help="of each measurement (15), of the siege (600)")
    parser.add_argument("--rounds", type=int, default=3, help="of load: servers take turns; medians are reported")
    parser.add_argument("--uploads", type=int, default=20_000, help="of fuzz")
    parser.add_argument("--bodies", type=int, default=5_000, help="of JSON, of fuzz")
    parser.add_argument("--requests", type=int, default=20_000, help="of soak")
    parser.add_argument(
        "--option", action="append", default=[], help="of raysere serve, as in --option=--limit=wait_s=0.5; figures are printed, not kept"
    )
    asked = parser.parse_args()
    clips = [path.read_bytes() for path in sorted(asked.clips.rglob("*")) if path.suffix in (".wav", ".flac")][:256]
    found = read_json(RESULT) if RESULT.is_file() else {}
    for part in [part for part in asked.only if part != "page"]:
        print(f"== {part}", flush=True)
        found[part] = {**globals()[f"_{part}"](asked, clips), "machine": machine()}
        if not asked.option:
            write_json(RESULT, found)
    if not asked.option:
        if "load" in found:
            _draw_load(found["load"]["medians"])
        if "siege" in found:
            _draw_siege(found["siege"])
    return 0


def _draw_load(medians: dict[str, dict[str, dict[str, float]]]) -> None:
    """Requests a second (99th percentile in ms)."""
    rows = [LOAD + " | ".join(medians) + " |", "| --- |" + " --- |" * len(medians)]
    for clients in next(iter(medians.values())):
        cells = [f"{of[clients]['per_s']:.1f} ({of[clients]['p99_ms']:.0f})" for of in medians.values()]
        rows.append(f"| {clients} | " + " | ".join(cells) + " |")
    _draw(LOAD, rows)


def _draw_siege(found: dict[str, Any]) -> None:
    """What the server held, as a table, and how it answered."""
    rows = [f"{SIEGE}at first | at most | at the end |", "| --- |" + " --- |" * 3]
    for name, title in {"pss_mb": "memory, MB", "disk_mb": "disk, MB", "descriptors": "descriptors"}.items():
        rows.append(f"| {title} | " + " | ".join(f"{found[when][name]:,.0f}" for when in ("first", "most", "end")) + " |")
    health = found["health"]
    text = (
        f"{found['seconds']:.0f} s of {found['hang_ups']:,} hang-ups, {found['floods']['requests']:,} JSON bodies of a million wrong items "
        f"and {found['half_sent']['at_most']:,} half-sent headers at a time; beside them {health['probes']:,} probes of `/healthz`: "
        f"{health['p50_ms']:.0f} ms (median), {health['p99_ms']:.0f} ms (99th percentile), {health['max_ms']:.0f} ms at most, "
        f"{health['failed']} without an answer. Status codes of the floods: {_codes(found['floods'])}; of a client that sends clips: "
        f"{_codes(found['clips'])}. {'The same replica' if found['the_same_replica_to_the_end'] else 'Another replica'} at the end."
    )
    rows += ["", *textwrap.wrap(text, 150, break_on_hyphens=False)]
    _draw(SIEGE, rows)


def _codes(tally: dict[str, Any]) -> str:
    return ", ".join(f"{'none' if code == '0' else code} {count:,} times" for code, count in tally["by_status"].items())


def _draw(begin: str, rows: list[str]) -> None:
    """Put a table, and the paragraph below it where it has one, into the page in place of the one
    that is there, or at its end.
    """
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    if not found:
        before, rest = page.rstrip("\n") + "\n\n", ""
    for _ in range(1 + ("" in rows)):
        rest = rest.partition("\n\n")[2]
    PAGE.write_text(before + "\n".join(rows) + "\n" + ("\n" + rest if rest else ""), encoding="utf-8")


@contextlib.contextmanager
def _server(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A server process that prints a line when it is ready; ended by its own signal, and by force
    where it does not heed it.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**kept, **environment})
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{command} does not start")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def _ours(ensemble: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-c", "from raysere.cli.main import main; main()", "serve", str(ensemble), "--port", str(port), *options]
    with _server(command, **environment) as process:
        yield f"http://127.0.0.1:{port}", process


@contextlib.contextmanager
def _plain(ensemble: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port("127.0.0.1")
    with _server([sys.executable, "-m", "benchmarks.serving.plain", str(ensemble), str(port), *options], **environment) as process:
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process


def _measured(url: str, clips: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    tally, wall = asyncio.run(closed(url, clips, clients, seconds))
    return tally.summary(wall)


def _load(asked: argparse.Namespace, clips: list[bytes]) -> dict[str, Any]:
    contenders = {
        "plain": lambda: _plain(asked.ensemble),
        "plain, one thread of torch": lambda: _plain(asked.ensemble, OMP_NUM_THREADS="1"),
        "plain, in turn": lambda: _plain(asked.ensemble, "--in-turn"),
        "raysere, 1 replica": lambda: _ours(asked.ensemble, *asked.option),
        "raysere, 2 replicas": lambda: _ours(asked.ensemble, *asked.option, "--replicas", "2"),
    }
    seconds = asked.seconds or 15
    rounds: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in contenders}
    for _ in range(asked.rounds):
        for name, start in contenders.items():
            with start() as (url, _process):
                _measured(url, clips, 4, 3)  # warm
                for clients in (1, 4, 16, 64):
                    row = _measured(url, clips, clients, seconds)
                    rounds[name].setdefault(clients, []).append(row)
                    print(name, clients, row, flush=True)
    medians = {
        name: {
            str(clients): {key: float(np.median([row[key] for row in rows])) for key in ("per_s", "p50_ms", "p99_ms")}
            for clients, rows in of.items()
        }
        for name, of in rounds.items()
    }
    plain = {  # the fastest of them at each number of clients
        clients: min((medians[name][clients] for name in medians if name.startswith("plain")), key=lambda row: -row["per_s"])
        for clients in medians["plain"]
    }
    ratios = {
        name: {
            clients: {"throughput": row["per_s"] / plain[clients]["per_s"], "p99": row["p99_ms"] / plain[clients]["p99_ms"]}
            for clients, row in of.items()
        }
        for name, of in medians.items()
    }
    return {"medians": medians, "ratios": ratios, "rounds": {name: {str(k): v for k, v in of.items()} for name, of in rounds.items()}}


def _overload(asked: argparse.Namespace, clips: list[bytes]) -> dict[str, Any]:
    """Twice what it can answer: refusals are quick and say when to come back, accepted requests
    keep their p99.
    """
    seconds = asked.seconds or 15
    with _ours(asked.ensemble, *asked.option) as (url, _process):
        _measured(url, clips, 16, 3)
        row = _measured(url, clips, 16, seconds)
        print("at 16 clients", row, flush=True)
        capacity = row["per_s"]
        result: dict[str, Any] = {"capacity_per_s": capacity}
        for name, factor in (("at 0.8", 0.8), ("at 2", 2.0)):
            tally, wall = asyncio.run(opened(url, clips, factor * capacity, 2 * seconds))
            refused = [seconds for seconds, status in zip(tally.seconds, tally.status) if status in (429, 503)]
            told = [retry for retry, status in zip(tally.retry, tally.status) if status in (429, 503)]
            result[name] = {
                **tally.summary(wall),
                "refused": len(refused),
                "refusal_p50_ms": round(1000 * float(np.quantile(refused, 0.5)), 1) if refused else None,
                "refusal_p99_ms": round(1000 * float(np.quantile(refused, 0.99)), 1) if refused else None,
                "refusals_with_retry_after": sum(bool(retry) for retry in told),
            }
            print(name, result[name], flush=True)
    return result


def _replicas(process: subprocess.Popen[str]) -> list[int]:
    """Processes of Serve replicas that belong to this server's Ray: those with its session in their
    environment's folder.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
                if "ServeReplica:raysere:ensemble" in title and _descends(int(entry.name), process.pid):
                    found.append(int(entry.name))
    return found


def _descends(child: int, ancestor: int) -> bool:
    while child > 1:
        if child == ancestor:
            return True
        try:
            child = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def _kill(asked: argparse.Namespace, clips: list[bytes]) -> dict[str, Any]:
    """SIGKILL one of two replicas under load: who fails, and when all is well again."""
    with _ours(asked.ensemble, *asked.option, "--replicas", "2") as (url, process):
        _measured(url, clips, 8, 3)

        async def both() -> tuple[Tally, float, float]:
            load = asyncio.create_task(closed(url, clips, 8, 30))
            await asyncio.sleep(8)
            victims = _replicas(process)
            assert len(victims) == 2, victims
            os.kill(victims[0], signal.SIGKILL)
            killed = 8.0
            tally, wall = await load
            return tally, wall, killed

        tally, wall, killed = asyncio.run(both())
        failed = [sent for sent, status in zip(tally.sent, tally.status) if status != 200]
        ended = [sent + took for sent, took, status in zip(tally.sent, tally.seconds, tally.status) if status != 200]
        after = 0.0
        for _ in range(100):
            after = time.perf_counter()
            if len(_replicas(process)) == 2:
                break
            time.sleep(0.2)
        return {
            **tally.summary(wall),
            "clients": 8,
            "failed": len(failed),
            "sent_after_the_kill_and_failed": sum(sent > killed + 0.05 for sent in failed),
            "last_failure_s_after_the_kill": round(max(ended) - killed, 2) if ended else 0.0,
            "two_replicas_again": len(_replicas(process)) == 2 and after > 0,
        }


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != pid and _descends(int(entry.name), pid):
            found.append(int(entry.name))
    return found


def _held(process: subprocess.Popen[str]) -> dict[str, float]:
    """Memory and descriptors of the replica with its decoder, and of the proxy."""
    (replica,) = _replicas(process)
    family = [replica, *_children(replica)]
    return {"rss_mb": round(sum(map(_rss_mb, family)), 1), "descriptors": sum(map(_descriptors, family))}


def _soak(asked: argparse.Namespace, clips: list[bytes]) -> dict[str, Any]:
    """As many requests as two hours bring at about three a second, as fast as they are answered:
    memory and descriptors over time.
    """
    rows = []
    with _ours(asked.ensemble, *asked.option) as (url, process):
        done, statuses, began = 0, {}, time.perf_counter()
        while done < asked.requests and time.perf_counter() - began < 1500:
            tally, _ = asyncio.run(closed(url, clips, 16, 20))
            done += len(tally.status)
            for status in tally.status:
                statuses[str(status)] = statuses.get(str(status), 0) + 1
            rows.append({"requests": done, **_held(process)})
            print(rows[-1], flush=True)
    return {
        "requests": done,
        "by_status": statuses,
        "over_time": rows,
        "growth_mb": round(rows[-1]["rss_mb"] - rows[len(rows) // 4]["rss_mb"], 1),
    }


def _fuzz(asked: argparse.Namespace, clips: list[bytes]) -> dict[str, Any]:
    """Mutated uploads of all formats and wrong JSON: no crash, no 5xx but 503, memory flat."""
    draw, originals = random.Random(1), list(seeds().values())
    rows: list[dict[str, float]] = []
    with _ours(asked.ensemble, *asked.option) as (url, process):
        (replica,) = _replicas(process)
        began = time.perf_counter()

        def sent(name: str, count: int, one: Callable[[Any, Tally], Coroutine[Any, Any, None]]) -> dict[str, int]:
            """Status codes of ``count`` requests by eight clients, a thousand at a time, as long as
            there is time.
            """
            statuses: dict[str, int] = {}
            for done in range(0, count, 1000):
                if time.perf_counter() - began > 3000:
                    break
                tally = asyncio.run(_by_eight(one, min(1000, count - done)))
                for status in tally.status:
                    statuses[str(status)] = statuses.get(str(status), 0) + 1
                rows.append({name: done + len(tally.status), **_held(process)})
                print(rows[-1], statuses, flush=True)
            return statuses

        uploads = sent("uploads", asked.uploads, lambda to, tally: send(to, url, mutated(draw.choice(originals), draw), tally, 0.0))
        routes = [f"{url}/v1/predict", f"{url}/v1/predict/batch"]
        bodies = sent("bodies", asked.bodies, lambda to, tally: send_json(to, draw.choice(routes), wrong_body(draw), tally, 0.0))
        survived = _replicas(process) == [replica]
    faults = {code: count for found in (uploads, bodies) for code, count in found.items() if code >= "500" and code != "503"}
    return {
        "uploads": sum(uploads.values()),
        "by_status": uploads,
        "bodies": sum(bodies.values()),
        "bodies_by_status": bodies,
        "5xx_but_503": sum(faults.values()),
        "no_answer": uploads.get("0", 0) + bodies.get("0", 0),
        "the_same_replica_to_the_end": survived,
        "over_time": rows,
    }


async def _by_eight(one: Callable[[Any, Tally], Coroutine[Any, Any, None]], count: int) -> Tally:
    tally, waiting = Tally(), iter(range(count))

    async def loop() -> None:
        for _ in waiting:
            await one(session, tally)

    async with new_session() as session:
        await asyncio.gather(*(loop() for _ in range(8)))
    return tally


def _siege(asked: argparse.Namespace, clips: list[bytes]) -> dict[str, Any]:
    """Hang-ups while audio is decoded, floods of JSON and half-sent headers: memory, disk,
    descriptors flat, and health answered.
    """
    with (
        tempfile.TemporaryDirectory(prefix="raysere-siege-") as folder,
        _ours(asked.ensemble, *asked.option, TMPDIR=folder, RAY_TMPDIR=tempfile.gettempdir()) as (url, process),
    ):
        before = _replicas(process)
        found = asyncio.run(besiege(url, clips, asked.seconds or 600, lambda: [process.pid, *_children(process.pid)], Path(folder)))
        found["the_same_replica_to_the_end"] = _replicas(process) == before
        print(found, flush=True)
        return found


if __name__ == "__main__":
    sys.exit(main())
