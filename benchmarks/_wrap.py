"""Prose of a Markdown page in lines of at most 100 columns; tables, code, headings and links that
are too long stay as they are.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

WIDTH = 100
_ITEM = re.compile(r"^(\s*)([-*] |\d+\. )")
_CODE = re.compile(r"`[^`]{1,80}`")
_BREAKS = {"break_long_words": False, "break_on_hyphens": False}
_WHOLE = re.compile(r"^(\||#|    |\t|>|!\[|<)")  # lines that are not prose


def wrapped(text: str) -> str:
    """``text`` with every paragraph and list item filled anew; what is wrapped already stays the
    same.
    """
    lines: list[str] = []
    paragraph: list[str] = []
    fenced = False

    def fill() -> None:
        if not paragraph:
            return
        item = _ITEM.match(paragraph[0])
        first = item[1] + item[2] if item else paragraph[0][: len(paragraph[0]) - len(paragraph[0].lstrip())]
        words = " ".join(line.strip() for line in paragraph)
        words = words[len(first.strip()) :].strip() if item else words
        words = _CODE.sub(lambda found: found[0].replace(" ", "\0"), words)  # code is not broken
        filled = textwrap.wrap(words, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), **_BREAKS)
        lines.extend(line.replace("\0", " ") for line in filled)
        paragraph.clear()

    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fill()
            fenced = not fenced
            lines.append(line)
        elif fenced or not line.strip() or (_WHOLE.match(line) and not paragraph) or (_WHOLE.match(line) and not line.startswith("    ")):
            fill()
            lines.append(line)
        else:
            if _ITEM.match(line):
                fill()
            paragraph.append(line)
    fill()
    return "\n".join(lines)


def write_wrapped(page: Path, text: str) -> None:
    page.write_text(wrapped(text), encoding="utf-8")
