"""TextGrids, long and short."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysere.base.errors import DataError
from raysere.corpora.textgrid import read_textgrid

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.5
            text = "xmin = 3 ""so"" 4"
    item [2]:
        class = "TextTier"
        name = "bell"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "ding"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
2
"IntervalTier"
"words"
0
1.5
2
0
0.5
""
0.5
1.5
"xmin = 3 ""so"" 4"
"TextTier"
"bell"
0
1.5
1
0.7
"ding"
"""
EXPECTED = {"words": [{"label": 'xmin = 3 "so" 4', "start_s": 0.5, "end_s": 1.5}]}


@pytest.mark.parametrize("text", [LONG, SHORT])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_both_formats_hold_the_same(tmp_path: Path, text: str, encoding: str) -> None:
    file = tmp_path / "a.TextGrid"
    file.write_text(text, encoding=encoding)
    assert read_textgrid(file) == EXPECTED


@pytest.mark.parametrize("text", ["", "FileName,EmoClass\n", LONG[:300], LONG[:-40], SHORT[:120], LONG.replace("0.5", "half")])
def test_broken_ones_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.TextGrid"
    file.write_text(text)
    with pytest.raises(DataError, match="TextGrid"):
        read_textgrid(file)
