"""Small SVG charts without a plotting library.

Colours come from CSS classes (``c0`` .. ``c5``, ``ink``, ``grid``) that the page defines, so that
dark mode works. Each chart has a ``<title>`` for screen readers. Widths are in user units; the page
scales them.

A chart is a ``Markup``, and so is each of its parts: pages show a Markup as it is and escape every
other text. Parts are made by :func:`text`, :func:`line` and :func:`shape` alone, which escape what
they are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from markupsafe import Markup

CHAR = 6.6  # width of one character of the 11 px chart font, in user units: an estimate for label margins


def svg(width: float, height: float, body: Sequence[str], title: str) -> Markup:
    """A chart of its parts. A part that is no Markup is escaped."""
    narrow = ";min-width:540px" if width > 600 else ""  # wide charts scroll sideways on a phone instead of becoming unreadable
    head = (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" style="max-width:{width:.0f}px{narrow}">'
        f"<title>{escape(title)}</title>"
    )
    return Markup(head) + Markup("").join(body) + Markup("</svg>")


_LIGHT = (
    "text{font:11px system-ui,sans-serif;fill:#1c2330}.soft{fill:#667085}.light{fill:#fff}.grid{stroke:#e4e7ec}"
    ".mark{stroke:#667085;stroke-dasharray:4 3}.cell{fill:#f7f8fa;stroke:#e4e7ec}.faint{fill-opacity:.32}.dot{fill-opacity:.75}"
    ".band{fill-opacity:.16}.wash{fill-opacity:.18}"
    + "".join(
        f".c{k}{{fill:{colour}}}.c{k}.stroke{{fill:none;stroke:{colour};stroke-width:1.8}}"
        for k, colour in enumerate(("#2f6fb3", "#d9743a", "#3a9a6a", "#8a5fb8", "#b8973a", "#7a8494"))
    )
)


_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def standalone(chart: Markup) -> str:
    """A chart as a file of its own: with the namespace, its size, and the light colours that a page
    would give it.

    Without a size an image takes the width of whatever shows it: a notebook would stretch three
    bars over its column. A file is XML, which control characters would break.
    """
    head, separator, rest = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", str(chart)).partition(">")
    width, height = head.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    return head.replace("<svg ", opened, 1) + f"{separator}<style>{_LIGHT}</style>{rest}\n"


def shape(name: str, css: str, **attributes: float | str) -> Markup:
    """An element without content, such as ``rect``; ``_`` in an attribute stands for ``-``, and a
    float has one decimal.
    """
    pairs = [
        ("class", css),
        *((key.replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else str(value)) for key, value in attributes.items()),
    ]
    return Markup(f"<{name}" + "".join(f' {key}="{escape(value)}"' for key, value in pairs) + "/>")


def text(x: float, y: float, value: str, *, anchor: str = "start", css: str = "ink", size: float = 11, turned: bool = False) -> Markup:
    """A text at (x, y); ``turned`` is read from below."""
    turn = f' transform="rotate(-90 {x:.0f} {y:.1f})"' if turned else ""
    return Markup(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}" font-size="{size}"{turn}>{escape(value)}</text>')


def line(x1: float, y1: float, x2: float, y2: float, css: str = "grid") -> Markup:
    return shape("line", css, x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round tick positions inside [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** int(f"{raw:e}".split("e")[1])
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw - 1e-12)
    first = int(low / step) - 1
    return [round(k * step, 10) for k in range(first, first + 4 * count) if low - 1e-9 <= k * step <= high + 1e-9]


def shorten(label: str, limit: int) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None, str]],
    *,
    title: str,
    mark: float | None = None,
    mark_label: str = "",
    width: float = 680,
    signed: bool = False,
) -> Markup:
    """Dots with interval bars, one row each: (label, value, low, high, css class).

    ``mark`` draws a dashed reference line.
    """
    values = [v for _, value, low, high, _ in rows for v in (value, low, high) if v is not None] + ([mark] if mark is not None else [])
    low_x, high_x = min(values), max(values)
    pad = 0.06 * (high_x - low_x) or 0.05
    low_x, high_x = low_x - pad, high_x + pad
    left = 14 + CHAR * max(len(shorten(row[0], 34)) for row in rows)
    right, top, step = 62, 18, 26
    height = top + step * len(rows) + 26

    def x(value: float) -> float:
        return left + (value - low_x) / (high_x - low_x) * (width - left - right)

    body = []
    for tick in ticks(low_x, high_x):
        body += [line(x(tick), top - 8, x(tick), height - 20), text(x(tick), height - 6, f"{tick:g}", anchor="middle", css="soft")]
    if mark is not None:
        body += [
            line(x(mark), top - 8, x(mark), height - 20, "mark"),
            text(x(mark), top - 9, mark_label, anchor="middle", css="soft", size=10),
        ]
    for index, (label, value, low, high, css) in enumerate(rows):
        y = top + step * index + step / 2
        body.append(text(left - 8, y + 4, shorten(label, 34), anchor="end"))
        if low is not None and high is not None:
            body.append(shape("rect", f"{css} faint", x=x(low), y=y - 3, width=max(x(high) - x(low), 1.0), height=6, rx=3))
        body.append(shape("circle", css, cx=x(value), cy=y, r=5))
        body.append(text(width - right + 8, y + 4, f"{value:{'+' if signed else ''}.3f}", css="ink"))
    return svg(width, height, body, title)


def bars(
    rows: Sequence[tuple[str, float, str]], *, title: str, width: float = 680, digits: int = 2, maximum: float | None = None
) -> Markup:
    """Horizontal bars from 0: (label, value, css class)."""
    top, step = 6, 24
    left = 14 + CHAR * max((len(shorten(row[0], 44)) for row in rows), default=4)
    right = 58
    height = top + step * len(rows) + 6
    most = maximum or max((row[1] for row in rows), default=1.0) or 1.0
    body = []
    for index, (label, value, css) in enumerate(rows):
        y = top + step * index
        length = max((width - left - right) * max(value, 0.0) / most, 0.5)
        body += [
            text(left - 8, y + 15, shorten(label, 44), anchor="end"),
            shape("rect", css, x=left, y=y + 4, width=length, height=step - 8, rx=2),
            text(left + length + 6, y + 15, f"{value:.{digits}f}"),
        ]
    return svg(width, height, body, title)


def columns(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    title: str,
    css: str = "c0",
    width: float = 680,
    height: float = 170,
    reference: float | None = None,
) -> Markup:
    """Vertical columns from 0 (layer weights); ``reference`` draws a dashed line (the uniform
    weight).
    """
    left, bottom, top = 44, 24, 12
    most = max([*values, reference or 0.0]) * 1.08 or 1.0
    slot = (width - left - 8) / max(len(values), 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / most)

    body = []
    for tick in ticks(0, most, 4):
        body += [line(left, y(tick), width - 8, y(tick)), text(left - 6, y(tick) + 4, f"{tick:g}", anchor="end", css="soft")]
    every = max(1, int(len(values) * 28 / (width - left)))
    for index, (value, label) in enumerate(zip(values, labels, strict=True)):
        x = left + slot * index
        bar = {"x": x + slot * 0.12, "y": y(value), "width": slot * 0.76, "height": max(height - bottom - y(value), 0.5)}
        body.append(shape("rect", css, **bar, rx=2))
        if index % every == 0:
            body.append(text(x + slot / 2, height - 8, label, anchor="middle", css="soft"))
    if reference is not None:
        body.append(line(left, y(reference), width - 8, y(reference), "mark"))
    return svg(width, height, body, title)


def matrix(counts: Sequence[Sequence[float]], names: Sequence[str], *, title: str) -> Markup:
    """Confusion matrix: rows are true classes, shares of the row as shade and per cent, counts
    below them.
    """
    cell = 58 if len(names) <= 6 else 50
    left = 18 + CHAR * max(len(name) for name in names)
    top = 42
    size = cell * len(names)
    body = [text(left + size / 2, 12, "predicted", anchor="middle", css="soft")]
    for index, name in enumerate(names):
        body += [
            text(left + cell * (index + 0.5), top - 8, shorten(name, int(cell / CHAR)), anchor="middle"),
            text(left - 8, top + cell * (index + 0.5) + 4, name, anchor="end"),
        ]
    for i, row in enumerate(counts):
        total = sum(row)
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            x, y = left + cell * j, top + cell * i
            css = "light" if share > 0.55 else "ink"
            square = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": cell - 2, "rx": 3}
            body += [
                shape("rect", "cell", **square),
                shape("rect", "c0" if i == j else "c1", **square, fill_opacity=f"{share:.3f}"),
                text(x + cell / 2, y + cell / 2 + 1, f"{100 * share:.0f} %", anchor="middle", css=css, size=12),
                text(x + cell / 2, y + cell / 2 + 15, f"{count:g}", anchor="middle", css=css, size=9),
            ]
    return svg(left + size + 8, top + size + 6, body, title)


def heatmap(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_label: str = "",
    column_label: str = "",
    low: float | None = None,
    high: float | None = None,
    outlined: Sequence[tuple[int, int]] = (),
    css: str = "c0",
    digits: int = 2,
    cell: float | None = None,
) -> Markup:
    """Values as shades with the number in each cell; None is left blank. ``outlined`` cells (row,
    column) get a frame.

    ``low`` and ``high`` bound the scale; by default the values do. ``cell`` is the width of a
    column.
    """
    known = [value for row in values for value in row if value is not None]
    bottom = low if low is not None else min(known, default=0.0)
    top_value = high if high is not None else max(known, default=1.0)
    cell = cell or (44 if len(columns) <= 12 else 36)
    step = 28 if len(columns) <= 12 else 24
    left = 30 + CHAR * max((len(name) for name in rows), default=1)
    top = 40 if column_label else 24
    body = [text(left + cell * len(columns) / 2, 12, column_label, anchor="middle", css="soft")] if column_label else []
    if row_label:
        body.append(text(10, top + step * len(rows) / 2, row_label, anchor="middle", css="soft", turned=True))
    body += [text(left + cell * (j + 0.5), top - 8, shorten(name, int(cell / CHAR) + 3), anchor="middle") for j, name in enumerate(columns)]
    for i, row in enumerate(values):
        body.append(text(left - 6, top + step * (i + 0.5) + 4, rows[i], anchor="end"))
        for j, value in enumerate(row):
            x, y = left + cell * j, top + step * i
            place = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": step - 2, "rx": 3}
            body.append(shape("rect", "cell", **place))
            if value is None:
                continue
            shade = min(max((value - bottom) / (top_value - bottom), 0.0), 1.0) if top_value > bottom else 0.0
            body.append(shape("rect", css, **place, fill_opacity=f"{0.9 * shade:.3f}"))
            if (i, j) in outlined:
                frame = {"x": x + 2, "y": y + 2, "width": cell - 4, "height": step - 4, "rx": 3}
                body.append(shape("rect", "mark", **frame, fill="none", style="stroke-dasharray:none;stroke-width:2"))
            body.append(
                text(
                    x + cell / 2,
                    y + step / 2 + 4,
                    f"{round(value, digits) + 0.0:.{digits}f}",
                    anchor="middle",
                    css="light" if shade > 0.6 else "ink",
                    size=10,
                )
            )
    return svg(left + cell * len(columns) + 8, top + step * len(rows) + 6, body, title)


def scatter(
    series: Sequence[tuple[str, Sequence[float], Sequence[float], str]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    best: bool = False,
    diagonal: bool = False,
    width: float = 680,
    height: float = 280,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    joined: bool = False,
) -> Markup:
    """Points by series (name, xs, ys, css class); ``best`` adds each series' running maximum,
    ``joined`` joins its points.
    """
    left, bottom, top, right = 52, 40, 26, 12
    xs = [v for _, values, _, _ in series for v in values] or [0.0, 1.0]
    ys = [v for _, _, values, _ in series for v in values] or [0.0, 1.0]
    x0, x1 = x_range or (min(xs), max(xs) or 1)
    y0, y1 = y_range or (min(ys), max(ys))
    if x1 <= x0:
        x1 = x0 + 1
    if y1 <= y0:
        y0, y1 = y0 - 0.05, y1 + 0.05
    if y_range is None:
        y0, y1 = y0 - 0.05 * (y1 - y0), y1 + 0.05 * (y1 - y0)

    def x(value: float) -> float:
        return left + (value - x0) / (x1 - x0) * (width - left - right)

    def y(value: float) -> float:
        return top + (1 - (value - y0) / (y1 - y0)) * (height - top - bottom)

    body = []
    for tick in ticks(y0, y1):
        body += [line(left, y(tick), width - right, y(tick)), text(left - 6, y(tick) + 4, f"{tick:g}", anchor="end", css="soft")]
    for tick in ticks(x0, x1, 6):
        body.append(text(x(tick), height - bottom + 16, f"{tick:g}", anchor="middle", css="soft"))
    body += [text((left + width - right) / 2, height - 6, x_label, anchor="middle", css="soft"), text(4, 12, y_label, css="soft")]
    if diagonal:
        body.append(line(x(max(x0, y0)), y(max(x0, y0)), x(min(x1, y1)), y(min(x1, y1)), "mark"))
    legend = left + 24 + CHAR * len(y_label)
    for name, series_x, series_y, css in series:
        drawn = [(x(vx), y(vy)) for vx, vy in zip(series_x, series_y, strict=True)]
        if best:
            top_so_far = float("-inf")
            path: list[tuple[float, float]] = []
            for vx, vy in sorted(zip(series_x, series_y, strict=True)):
                if vy > top_so_far:
                    if path:
                        path.append((x(vx), path[-1][1]))
                    top_so_far = vy
                    path.append((x(vx), y(vy)))
            if path:
                path.append((x(x1), path[-1][1]))
                body.append(shape("polyline", f"{css} stroke", points=_points(path)))
        if joined:
            body.append(shape("polyline", f"{css} stroke", points=_points(drawn)))
        body += [shape("circle", f"{css} dot", cx=cx, cy=cy, r=3.2) for cx, cy in drawn]
        if len(series) > 1 or best:
            body += [shape("circle", css, cx=legend, cy=9, r=4), text(legend + 8, 13, shorten(name, 28))]
            legend += 24 + CHAR * len(shorten(name, 28))
    return svg(width, height, body, title)


def curves(
    series: Sequence[tuple[str, Sequence[float | None], Sequence[float | None], Sequence[float | None], str]],
    labels: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    null: Sequence[float | None] | None = None,
    null_label: str = "",
    marked: Sequence[int] = (),
    width: float = 460,
    height: float = 250,
) -> Markup:
    """Lines over places 0, 1, ... (layers) with interval bands: (name, values, lows, highs, css
    class), None where there is no value.

    ``null`` is a dashed curve of reference; ``marked`` places get a shaded column behind them
    (chosen layers).
    """
    left, bottom, top, right = 52, 40, 26, 12
    every = [v for _, *parts, _ in series for part in parts for v in part if v is not None] + [v for v in null or () if v is not None]
    y0, y1 = (min(every), max(every)) if every else (0.0, 1.0)
    pad = 0.06 * (y1 - y0) or 0.05
    y0, y1 = y0 - pad, y1 + pad
    slot = (width - left - right) / max(len(labels), 1)

    def x(place: float) -> float:
        return left + slot * (place + 0.5)

    def y(value: float) -> float:
        return top + (1 - (value - y0) / (y1 - y0)) * (height - top - bottom)

    body = [shape("rect", "c4 wash", x=left + slot * place, y=top, width=slot, height=height - top - bottom) for place in marked]
    for tick in ticks(y0, y1):
        body += [line(left, y(tick), width - right, y(tick)), text(left - 6, y(tick) + 4, f"{tick:g}", anchor="end", css="soft")]
    step = max(1, -(-len(labels) * 26 // int(width - left - right)))
    body += [text(x(at), height - bottom + 16, labels[at], anchor="middle", css="soft") for at in range(0, len(labels), step)]
    body += [text((left + width - right) / 2, height - 6, x_label, anchor="middle", css="soft"), text(4, 12, y_label, css="soft")]
    legend = left + 24 + CHAR * len(y_label)
    for name, values, lows, highs, css in series:
        for run in _runs(values, lows, highs):
            if all(low is not None and high is not None for _, _, low, high in run):
                edge = [(at, high) for at, _, _, high in run] + [(at, low) for at, _, low, _ in reversed(run)]
                body.append(shape("polygon", f"{css} band", points=_points((x(at), y(v or 0.0)) for at, v in edge)))
            drawn = [(x(at), y(v)) for at, v, _, _ in run]
            body.append(shape("polyline", f"{css} stroke", points=_points(drawn)))
            body += [shape("circle", css, cx=cx, cy=cy, r=3) for cx, cy in drawn]
        if len(series) > 1:
            body += [shape("circle", css, cx=legend, cy=9, r=4), text(legend + 8, 13, shorten(name, 28))]
            legend += 24 + CHAR * len(shorten(name, 28))
    if null is not None:
        nothing = [None] * len(null)
        body += [
            shape("polyline", "mark", fill="none", points=_points((x(at), y(v)) for at, v, _, _ in run))
            for run in _runs(null, nothing, nothing)
        ]
        if null_label:
            body += [line(legend - 6, 9, legend + 10, 9, "mark"), text(legend + 14, 13, null_label, css="soft")]
    return svg(width, height, body, title)


def _points(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _runs(
    values: Sequence[float | None], lows: Sequence[float | None], highs: Sequence[float | None]
) -> list[list[tuple[int, float, float | None, float | None]]]:
    """Stretches of places that have a value, with their bounds."""
    runs: list[list[tuple[int, float, float | None, float | None]]] = [[]]
    for at, (value, low, high) in enumerate(zip(values, lows, highs, strict=True)):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value, low, high))
    return [run for run in runs if run]
