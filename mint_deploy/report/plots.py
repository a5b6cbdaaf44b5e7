"""The pictures of measurements: distributions, accuracy against latency, throughput over the batch, memory.

Inline SVG like :mod:`mint_deploy.report.charts`, drawn for a phone's width as for a page's: labels keep their
size, so they are placed where none runs into another's line.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from mint_deploy.report import charts, svg, words
from mint_deploy.report.charts import Axis

__all__ = ["Point", "distribution", "memory", "plane", "sweep"]

#: height of a line of small text, of a distribution's bars, of a row of restarts (many, or few)
_LINE, _AREA, _ROW, _THIN = 13.0, 44.0, 9.0, 5.0
_MANY = 12
#: a phone's plotting width in pixels, a small letter's, and one of a point's name
_PHONE, _LETTER, _NAME = 250.0, 6.0, 6.5


def distribution(
    scale: Axis,
    shape: Mapping[str, Any],
    marks: Sequence[tuple[str, float]],
    restarts: Sequence[Mapping[str, Any]],
    *,
    span: tuple[float, float] | None,
    title: str,
    tone: str,
) -> Markup:
    """Return the bars of a distribution with its marks, and below them a dot for each restart's median.

    Args:
        scale: the axis that all models share.
        shape: ``low high counts``, see :func:`mint_deploy.report.measured.shape`.
        marks: ``(text, value)``, the median first: each is a line with its text.
        restarts: ``q1 median q3`` of each process restart, in order.
        span: the interval of the median, a pale band.
        title: what a screen reader says.
        tone: class of the colours.
    """
    pitch = _ROW if len(restarts) <= _MANY else _THIN
    foot = 4 + _LINE * len(marks) + _AREA
    height = foot + 8 + pitch * len(restarts) + 3
    parts = charts.grid(scale, height)
    if span is not None:
        x1, x2 = scale.at(span[0]), scale.at(span[1])
        parts.append(
            svg.tag(
                "rect", x=svg.percent(x1), y=foot - _AREA, width=svg.percent(max(x2 - x1, 0.2)),
                height=height - foot + _AREA, class_=f"band {tone}",
            )
        )  # fmt: skip
    parts += _bars(scale, shape, foot, tone)
    parts.append(svg.line(0.0, 100.0, foot, foot, "base"))
    for row, (text, at, left) in enumerate(_rows(scale, marks)):
        y = 2 + _LINE * row
        parts.append(svg.line(at, at, y, foot, f"mark {tone}"))
        parts.append(
            svg.text(
                text, x=svg.percent(at), y=y + 9, dx=-5 if left else 5,
                text_anchor="end" if left else "start",
            )
        )  # fmt: skip
    for row, restart in enumerate(restarts):
        y = foot + 8 + pitch * (row + 0.5)
        ends = scale.at(restart["q1"]), scale.at(restart["q3"])
        parts.append(svg.line(*ends, y, y, f"thin {tone}"))
        middle = svg.percent(scale.at(restart["median"]))
        parts.append(
            svg.tag("circle", cx=middle, cy=y, r=3 if pitch == _ROW else 2, class_=f"each {tone}")
        )
    return svg.titled(title, parts, height=height, class_="plot lane")


def _bars(scale: Axis, shape: Mapping[str, Any], foot: float, tone: str) -> list[Markup]:
    """Return the outline over the counts, the tallest as high as the area."""
    counts, low, high = shape["counts"], shape["low"], shape["high"]
    most = max(counts, default=0)
    if not most:
        return []
    if len(counts) == 1 or high <= low:  # every call took the same time
        at = scale.at(low)
        return [svg.line(at, at, foot - _AREA, foot, f"whisker {tone}")]
    width = (high - low) / len(counts)
    points = [(scale.at(low), _AREA)]
    for i, n in enumerate(counts):
        y = _AREA * (1 - n / most)
        points += [(scale.at(low + width * i), y), (scale.at(low + width * (i + 1)), y)]
    points.append((scale.at(high), _AREA))
    return [svg.curve(points, _AREA, f"area {tone}", top=foot - _AREA, closed=True)]


def _rows(scale: Axis, marks: Sequence[tuple[str, float]]) -> list[tuple[str, float, bool]]:
    """Return ``(text, position, whether it stands at the left)`` from the top row down.

    No line crosses another mark's text: those that turn to the left stand first, from the right, then those to
    the right, from the left; and a text that would reach over the line of a turned one turns too.
    """
    placed = sorted(((scale.at(v), text) for text, v in marks), reverse=True)
    turned: list[tuple[str, float, bool]] = []
    plain: list[tuple[str, float, bool]] = []
    for at, text in placed:
        size = 100 * (len(text) * _LETTER + 8) / _PHONE
        crossed = any(at <= line <= at + size for _, line, _ in turned)
        left = at > size and (at + size > 100 or crossed)
        (turned if left else plain).append((text, at, left))
    return turned + plain[::-1]


def memory(scale: Axis, imports: float, net: float, *, title: str, tone: str) -> Markup:
    """Return one bar: what the imports took, hollow, and what the network added, filled."""
    height, thick = 30.0, 14.0
    x1, x2 = scale.at(imports), scale.at(imports + net)
    y = (height - thick) / 2
    parts = [
        *charts.grid(scale, height),
        svg.tag("rect", x=0, y=y, width=svg.percent(x1), height=thick, rx=2, class_="imports"),
        svg.tag(
            "rect", x=svg.percent(x1), y=y, width=svg.percent(max(x2 - x1, 0.3)), height=thick,
            rx=2, class_=f"solid {tone}",
        ),
    ]  # fmt: skip
    return svg.titled(title, parts, height=height, class_="plot")


# ---------------------------------------------------------------- two axes


def _frame(
    parts: Sequence[str],
    *,
    title: str,
    height: float,
    up: Axis,
    up_text: Callable[[float], str],
    below: Sequence[tuple[float, str]],
) -> Markup:
    """Return a picture with numbers at its left and below it."""
    numbers = [
        svg.text(up_text(t), x="100%", y=_y(up, t, height) + 4, text_anchor="end") for t in up.ticks
    ]
    gutter = svg.tag(
        "svg",
        Markup("").join(numbers),
        class_="gutter",
        width=46,
        height=height,
        aria_hidden="true",
    )
    lines = [svg.line(0.0, 100.0, y, y, "grid") for y in (_y(up, t, height) for t in up.ticks)]
    plot = svg.titled(title, [*lines, *parts], height=height, class_="plot")
    feet = []
    for at, text in below:
        anchor = "start" if at < 4 else "end" if at > 96 else "middle"
        feet.append(svg.text(text, x=svg.percent(at), y=14, text_anchor=anchor))
    under = svg.tag("span", "", class_="gutter") + svg.strip(feet, 18)
    return svg.tag("div", gutter + plot, class_="columns") + svg.tag("div", under, class_="columns")


def _y(up: Axis, value: float, height: float) -> float:
    return height * (1 - up.at(value) / 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of :func:`plane` with its intervals; ``name`` stands beside it, ``said`` is read out."""

    name: str
    said: str
    tone: str
    x: float
    y: float
    x_span: tuple[float, float] | None = None
    y_span: tuple[float, float] | None = None


def plane(
    across: Axis, up: Axis, points: Sequence[Point], *, title: str, height: float = 250.0
) -> Markup:
    """Return points with intervals in both directions; one below the picture is an arrow at its foot."""
    parts = [svg.line(across.at(t), across.at(t), 0.0, height, "grid") for t in across.ticks]
    places = [(across.at(p.x), _y(up, p.y, height)) for p in points]
    for p, (x, y) in sorted(
        zip(points, places, strict=True), key=lambda pair: pair[0].tone != "control"
    ):
        drawn = [svg.tag("title", escape(words.plain(p.said)))]
        if p.y < up.low:
            drawn.append(_arrow(p.tone, x, height - 12))
        else:
            if p.x_span is not None:
                x1, x2 = across.at(p.x_span[0]), across.at(p.x_span[1])
                drawn.append(svg.line(x1, x2, y, y, f"whisker {p.tone}"))
            if p.y_span is not None:
                y1, y2 = (_y(up, v, height) for v in p.y_span)
                drawn.append(svg.line(x, x, y1, y2, f"whisker {p.tone}"))
            radius = 7.5 if p.tone == "control" else 4.5  # it may lie under the dense network's
            drawn.append(
                svg.tag("circle", cx=svg.percent(x), cy=y, r=radius, class_=f"dot {p.tone}")
            )
        parts.append(svg.tag("g", Markup("").join(drawn)))
    parts += _labels([p.name for p in points], places, height)
    feet = [(across.at(t), across.text(t)) for t in across.ticks]
    return _frame(parts, title=title, height=height, up=up, up_text=up.text, below=feet)


def _arrow(tone: str, x: float, y: float) -> Markup:
    """Return an arrow that points down; points of a polygon are pixels, so it stands in a picture of its own."""
    drawn = svg.tag("polygon", points="0,11 -6,1 6,1", class_=f"arrow {tone}")
    return svg.tag("svg", drawn, x=svg.percent(x), y=y, aria_hidden="true")


def _labels(
    names: Sequence[str], places: Sequence[tuple[float, float]], height: float
) -> list[Markup]:
    """Return a name beside each point, above its whisker; points in one place share a line."""
    spots: list[tuple[float, float, list[str]]] = []
    for name, (x, y) in sorted(zip(names, places, strict=True), key=lambda found: found[1][1]):
        near = next((s for s in spots if abs(s[0] - x) < 3 and abs(s[1] - y) < 8), None)
        if near is None:
            spots.append((x, y, [name]))
        else:
            near[2].append(name)
    out: list[Markup] = []
    taken: list[tuple[float, float, float]] = []  # from, to, line
    for x, y, shared in spots:
        text = ", ".join(shared)
        begin, end, down = _place(x, max(min(y, height) - 6, 10.0), len(text), taken)
        taken.append((begin, end, down))
        left = begin < x
        out.append(
            svg.text(
                text, x=svg.percent(x), y=down, dx=-9 if left else 9, class_="name",
                text_anchor="end" if left else "start",
            )
        )  # fmt: skip
    return out


def _place(
    x: float, down: float, letters: int, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float, float]:
    """Return where a name goes: right or left of ``x``, on the nearest line where nothing lies yet."""
    size = 100 * (letters * _NAME + 12) / _PHONE
    sides = [s for s in ((x, x + size), (x - size, x)) if s[0] >= 0 and s[1] <= 100]
    sides = sides or [(x, x + size) if x < 50 else (x - size, x)]
    # a name lies in the way of two lines at most, so that one of these is free
    rows = itertools.chain([0], *((-n, n) for n in range(1, 2 + 2 * len(taken))))
    lines = [down + row * _LINE for row in rows]
    return next(
        (begin, end, line)
        for line in lines
        for begin, end in sides
        if line >= 10.0
        and not any(begin < b and a < end for a, b, at in taken if abs(at - line) < _LINE)
    )


def sweep(
    batches: Sequence[int], lines: Sequence[Mapping[str, Any]], *, title: str, height: float = 200.0
) -> Markup:
    """Return samples a second over the batch, a line a model; a ring marks its knee.

    Args:
        batches: of all lines, ascending: they stand at equal distances.
        lines: ``label tone knee points``, a point with ``batch per_s low high``.
        title: what a screen reader says.
        height: in pixels.
    """
    tops = [p.get("high") or p["per_s"] for line in lines for p in line["points"]]
    up = charts.axis([*tops, *(p["per_s"] for line in lines for p in line["points"])], zero=True)
    at = {b: 100 * (i + 0.5) / len(batches) for i, b in enumerate(batches)}
    parts: list[Markup] = []
    for found in lines:
        tone, points = found["tone"], found["points"]
        path = [(at[p["batch"]], _y(up, p["per_s"], height)) for p in points]
        if len(path) > 1:
            parts.append(svg.curve(path, height, f"path {tone}"))
        for p, (x, y) in zip(points, path, strict=True):
            said = f"{found['label']}, batch {p['batch']}: {words.short(p['per_s'])} a second"
            drawn = [svg.tag("title", escape(words.plain(said)))]
            if p.get("low") is not None and p.get("high") is not None:
                y1, y2 = (_y(up, p[end], height) for end in ("low", "high"))
                drawn.append(svg.line(x, x, y1, y2, f"whisker {tone}"))
            if p["batch"] == found["knee"]:
                drawn.append(svg.tag("circle", cx=svg.percent(x), cy=y, r=9, class_=f"ring {tone}"))
            drawn.append(svg.tag("circle", cx=svg.percent(x), cy=y, r=4.5, class_=f"dot {tone}"))
            parts.append(svg.tag("g", Markup("").join(drawn)))
    feet = [(x, str(b)) for b, x in at.items()]
    return _frame(parts, title=title, height=height, up=up, up_text=words.short, below=feet)
