"""Vowel chart by F2 and F1: front vowels left, close vowels above."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from raysere.report.charts import line, svg, text, ticks

_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 26, 16, 36


def vowel_chart(rows: Sequence[tuple[str, float, float]], *, title: str, width: float = 460, height: float = 320) -> Markup:
    """Symbols at (F1, F2) in Bark. Args: rows: (vowel, F1, F2), at least one."""
    spans = [(min(values) - 0.4, max(values) + 0.4) for values in zip(*((f2, f1) for _, f1, f2 in rows), strict=True)]
    (x0, x1), (y0, y1) = spans

    def x(value: float) -> float:
        return _LEFT + (x1 - value) / (x1 - x0) * (width - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (value - y0) / (y1 - y0) * (height - _TOP - _BOTTOM)

    body = []
    for tick in ticks(y0, y1):
        body += [line(_LEFT, y(tick), width - _RIGHT, y(tick)), text(_LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end", css="soft")]
    for tick in ticks(x0, x1, 6):
        body.append(text(x(tick), height - _BOTTOM + 16, f"{tick:g}", anchor="middle", css="soft"))
    body += [text(4, 12, "F1, Bark", css="soft"), text(width - _RIGHT, height - 4, "F2, Bark", anchor="end", css="soft")]
    body += [text(x(f2), y(f1) + 5, vowel, anchor="middle", size=15) for vowel, f1, f2 in rows]
    return svg(width, height, body, title)
