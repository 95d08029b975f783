"""``python docs/generate.py [--check]``: write the pages that come from the code.

- the tree in ``ARCHITECTURE.md``: every package of raysere with the first sentence of its
  docstring;
- ``docs/modules.md``: every module with the first line of its docstring;
- ``docs/experiment.md``: every key of an experiment, from the pydantic models.

``--check`` writes nothing; exit code 1 where a page is not what the code says.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree: written by docs/generate.py -->", "<!-- end of tree -->"
ORDER = (
    "base", "corpora", "demo", "features", "nn", "training", "methods", "testing", "search", "ensemble", "report", "pipeline",
    "serving", "studies", "cli",
)  # fmt: skip


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, as one line without its full stop.

    Raises SystemExit where there is none.
    """
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not told:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring")
    return re.sub(r"\s+", " ", told.split("\n\n")[0]).strip().removesuffix(".").removesuffix(":")


def packages() -> list[Path]:
    """Folders of packages, in the order in which imports run, each before the folders in it."""
    found = []
    for name in ORDER:
        found += sorted(path.parent for path in (ROOT / "raysere" / name).rglob("__init__.py"))
    there = {path.parent for path in (ROOT / "raysere").rglob("__init__.py")} - {ROOT / "raysere"}
    if missing := there - set(found):
        raise SystemExit(f"docs/generate.py: ORDER lacks {', '.join(sorted(path.name for path in missing))}")
    return found


def tree() -> str:
    rows = []
    for folder in packages():
        depth = len(folder.relative_to(ROOT / "raysere").parts)
        rows.append((" " * 2 * depth + folder.name + "/", summary(folder / "__init__.py")))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(["```text", "raysere/", *(f"{name:{width}}{told}" for name, told in rows), "```"])


def modules() -> str:
    lines = [
        "# Modules",
        "",
        "What every file of raysere is for, lowest first; a file imports only from files above it here",
        "or beside it.",
    ]
    lines += ["Written by `python docs/generate.py` from the docstrings of the modules; not edited by hand.", ""]
    for folder in [ROOT / "raysere", *packages()]:
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        lines += [f"## {folder.relative_to(ROOT)}", "", summary(folder / "__init__.py") + ".", ""]
        if files:
            lines += ["| file | what it is for |", "| --- | --- |"]
            lines += [f"| {path.name} | {summary(path).replace('|', chr(92) + '|')} |" for path in files]
            lines.append("")
    return "\n".join(lines)


HEAD = """# The experiment file

Every key of the YAML file that `raysere run` takes, with its type, its default, its unit and an
example. `raysere init` writes a commented file to start from, `raysere schema experiment` prints
the same as a JSON schema, and `--set KEY.SUB.0=VALUE` on a command changes one value.

An unknown key is an error. `${NAME}` and `${NAME:-default}` in any text are replaced by the
variable of the environment, and what they stand for is written to the run. A variable whose name
says that it is a secret (`..._TOKEN`, `..._PASSWORD`, `..._KEY`) is refused.

Written by `python docs/generate.py` from the code; not edited by hand.
"""


def experiment() -> str:
    """The page of all keys. Raises SystemExit for a key without a description or an example."""
    sys.path.insert(0, str(ROOT))
    from raysere.pipeline.experiment import Experiment

    parts, waiting, done = [HEAD], [("", Experiment)], []
    while waiting:
        place, model = waiting.pop(0)
        done.append(model)
        inner = []
        rows = ["| key | type | default | example | meaning |", "| --- | --- | --- | --- | --- |"]
        for name, field in model.model_fields.items():
            models = _models(field.annotation)
            key = f"{place}.{name}" if place else name
            if not field.description or not (field.examples or models):
                raise SystemExit(f"{model.__name__}.{name} has no description or no example")
            inner += [(key + _step(field.annotation), one) for one in models if one not in done]
            unit = (field.json_schema_extra or {}).get("unit")
            told = field.description + (f" Unit: {unit}." if unit else "")
            examples = "<br>".join(f"`{_yaml(one)}`" for one in field.examples or ())
            default = "required" if field.is_required() else "see below" if models and field.default is not None else f"`{_default(field)}`"
            rows.append("| " + " | ".join(_cell(text) for text in (f"`{name}`", _type(field), default, examples, told)) + " |")
        title = f"## `{place}`" if place else "## The file"
        parts.append("\n".join([title, "", *textwrap.wrap(summary_of(model), 100), "", *rows, ""]))
        waiting = inner + waiting
    return "\n".join(parts)


def summary_of(model: Any) -> str:
    return re.sub(r"\s+", " ", (model.__doc__ or "").split("\n\n")[0]).strip().replace("``", "`")


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return [annotation]
    return [found for one in typing.get_args(annotation) for found in _models(one)]


def _step(annotation: Any) -> str:
    """What stands between a key and the keys of the models in it: a number in a list, a name in a
    mapping.
    """
    return {list: "[ ]", dict: ".NAME"}.get(typing.get_origin(annotation), "")


def _type(field: Any) -> str:
    limits = {name: value for one in field.metadata for name in ("ge", "gt", "le", "lt") if (value := getattr(one, name, None)) is not None}
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return ", ".join([_name(field.annotation), *(f"{signs[name]} {value:g}" for name, value in limits.items())])


def _name(annotation: Any) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return _name(inside[0])
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(one) for one in inside)
    if origin is tuple and len(inside) == 2 and inside[1] is not Ellipsis:
        return f"two of {_name(inside[0])}"
    if origin in (list, tuple):
        return f"list of {_name(inside[0])}"
    if origin is dict:
        return f"mapping of {_name(inside[0])} to {_name(inside[1])}"
    if annotation is Any:
        return "anything"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(annotation.__name__, "block")


def _default(field: Any) -> str:
    return _yaml(field.get_default(call_default_factory=True))


def _yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return (
        "null"
        if value is None
        else yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...").strip()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def pages() -> dict[Path, str]:
    """What each page should hold."""
    architecture = ROOT / "ARCHITECTURE.md"
    text = architecture.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"ARCHITECTURE.md has no lines {BEGIN!r} and {END!r}")
    return {
        architecture: f"{before}{BEGIN}\n{tree()}\n{END}{after}",
        ROOT / "docs" / "modules.md": modules(),
        ROOT / "docs" / "experiment.md": experiment(),
    }


def main() -> int:
    stale = []
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"Not what the code says: {', '.join(map(str, stale))}. Run: python docs/generate.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
