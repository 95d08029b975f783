"""Table of the ports that each command opens: ``python -m benchmarks.ports [--code CHECKOUT]``;
about three minutes on two cores.

``--code`` watches the commands of another checkout, such as one of an earlier version.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.ports import Watched, watch

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, default=ROOT)
    code = parser.parse_args().code.resolve()
    sys.path.insert(0, str(ROOT / "tests" / "end_to_end"))
    from toy import experiment, make_corpus

    print("Five commands on a corpus of 48 tones: about three minutes.\n", flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(code)}
    print("| command | process | address | ports seen | tasks run |\n| --- | --- | --- | --- | --- |")
    seen: dict[str, Watched] = {}
    with tempfile.TemporaryDirectory(prefix="raysere-ports-") as temporary:
        folder = Path(temporary)
        file = str(experiment(folder, make_corpus(folder / "corpus")))
        run = str(folder / "runs" / "toy")
        python = [sys.executable, "-m", "raysere"]
        for name, arguments, ready in (
            ("extract", ["extract", file], None),
            ("tune", ["tune", file], None),
            ("run", ["run", file, "--set", "name=other"], None),
            ("serve", ["serve", str(folder / "runs" / "other" / "ensemble"), "--port", "0"], "Serving ensemble"),
            ("tensorboard", ["tensorboard", run, "--port", "0"], "http://"),
        ):
            until = None if ready is None else (lambda text, word=ready: word in text)
            seen[name] = watch([*python, *arguments], environment, folder, until=until)
            print(rows(name, seen[name]), flush=True)
    print("\nA socket counts once for each name of its process.\n")
    print("| command | sockets beyond loopback | on loopback | tasks run |\n| --- | --- | --- | --- |")
    for name, one in seen.items():
        print(f"| `{name}` | {len(one.beyond)} | {len(one.open) - len(one.beyond)} | {', '.join(one.ran) or 'none'} |")
    return 0


def rows(command: str, seen: Watched) -> str:
    """Rows of the table; what several processes of one kind open is one row."""
    kinds: dict[tuple[str, str], set[int]] = {}
    for one in seen.open:
        name = ":".join(one.process.split(".")[0].split(":")[:3]) if one.process.startswith("ray::") else one.process
        kinds.setdefault((name, one.address), set()).add(one.port)
    lines = []
    for (process, address), ports in sorted(kinds.items()):
        count = f"{len(ports)}" if len(ports) > 1 or not ports & {52365, 44217, 44227} else f"{next(iter(ports))}"
        first = not lines
        tasks = (", ".join(seen.ran) or "none") if first else ""
        lines.append(f"| {f'`{command}` (code {seen.code})' if first else ''} | {process} | {address} | {count} | {tasks} |")
    return "\n".join(lines) or f"| `{command}` (code {seen.code}) | none | | | |"


if __name__ == "__main__":
    sys.exit(main())
