"""Pages from templates: all text is escaped, and no page runs a script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from raysere.base.files import atomic_write


def write_template(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Write a template of the package (``report/page.html.j2``), filled with values, to ``path``,
    and return it.

    A value that is Markup is not escaped.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("raysere", "."), autoescape=True, trim_blocks=True)
    environment.filters["number"] = _number
    page = environment.get_template(template).render(values)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # names from JSON may hold half of a surrogate pair
    return path


def _number(value: Any, digits: int = 3) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
