"""The report's pictures: inline SVG, drawn here, without a script or a library.

Horizontal positions are percentages and vertical ones pixels, and there is no ``viewBox``: a
picture takes the width it is given, while its text and strokes keep their size. Colours come from
the page's style (classes ``dense slim control grid``), so they follow light, dark and print.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from mint_deploy.report import svg, words

__all__ = [
    "Axis",
    "axis",
    "bar",
    "boxes",
    "columns",
    "cut_off",
    "grid",
    "interval",
    "losses",
    "pair",
    "stages",
    "ticks",
    "uses_root",
]

#: a phone's plotting width in pixels, and a character's: what a label must fit into
_NARROW, _CHARACTER = 270.0, 6.6

_MOST_PARTS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear axis from ``low`` to ``high`` with its ``ticks``, printed with ``unit``."""

    low: float
    high: float
    ticks: tuple[float, ...]
    places: int = 0
    unit: str = ""

    def at(self, value: float) -> float:
        """Return where ``value`` stands, in percent of the width, never outside."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def text(self, tick: float) -> str:
        """Return a tick's number with the decimals that tell it from its neighbours."""
        return f"{words.fixed(tick, self.places)}{self.unit}"


def axis(
    values: Iterable[float | None],
    *,
    unit: str = "",
    zero: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Axis:
    """Return an axis over ``values`` with round ticks; ``zero`` lets it begin there."""
    known = [v for v in values if v is not None and math.isfinite(v)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(known)), max(known)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-200:  # one value: room around it, and no underflow
        high = low + (0.1 * size if size >= 1e-200 else 1.0)
        if bounds and high > bounds[1]:  # every class at 100 %: the room is below
            low, high = low - (high - low), bounds[1]
    rough = (high - low) / 4
    power = math.floor(math.log10(rough))
    round_ = next(s for s in (1, 2, 2.5, 5, 10) if s * 10.0**power >= rough * 0.999)
    step = round_ * 10.0**power
    low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    if bounds:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    first = math.ceil(low / step - 1e-9)
    marks = tuple(step * i for i in range(first, math.floor(high / step + 1e-9) + 1))
    places = max(0, -power + (round_ == 2.5) - (round_ == 10))
    return Axis(low=low, high=high, ticks=marks, places=places, unit=unit)


def grid(scale: Axis, height: float) -> list[Markup]:
    """Return the vertical lines at the ticks of ``scale``."""
    return [svg.line(scale.at(t), scale.at(t), 0.0, height, "grid") for t in scale.ticks]


# ---------------------------------------------------------------- one row of a table


def ticks(scale: Axis, *, wide: float = 170.0) -> Markup:
    """Return the row of numbers under a column of plots that share ``scale``.

    ``wide`` is how many pixels the column has where it is narrowest: where not every number fits, every second one
    stands, or fewer.
    """
    marks = list(scale.ticks)
    longest = max(len(scale.text(t)) for t in marks)
    gap = wide * (scale.at(marks[1]) - scale.at(marks[0])) / 100 if len(marks) > 1 else wide
    # the first and the last number stand inside the picture, so that their neighbours need half as much again
    step = max(1, math.ceil((1.5 * longest * _CHARACTER - 6) / max(gap, 1e-9)))
    parts = []
    for tick in marks[::step]:
        at = scale.at(tick)
        anchor = "start" if at < 4 else "end" if at > 96 else "middle"
        parts.append(svg.text(scale.text(tick), x=svg.percent(at), y=12, text_anchor=anchor))
    return svg.strip(parts, 16)


def interval(
    scale: Axis,
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    title: str,
    tone: str = "slim",
    reference: float | None = None,
    each: Sequence[float] = (),
) -> Markup:
    """Return a dot with its interval; ``reference`` is marked by a dashed line.

    A value below the axis is an arrow at its edge. ``each`` are the values that the interval was made of, small
    and pale beneath.
    """
    height, middle = (58.0 if each else 44.0), 22.0
    parts = grid(scale, height)
    if reference is not None:
        parts.append(svg.line(scale.at(reference), scale.at(reference), 0.0, height, "reference"))
    if value is not None and value < scale.low:
        parts.append(svg.tag("polygon", points="0,22 10,16 10,28", class_=f"arrow {tone}"))
        return svg.titled(title, parts, height=height, class_="plot")
    parts += [
        svg.tag("circle", cx=svg.percent(scale.at(v)), cy=44, r=3, class_=f"each {tone}")
        for v in each
    ]
    if low is not None and high is not None:
        parts.append(svg.line(scale.at(low), scale.at(high), middle, middle, f"whisker {tone}"))
        parts += [
            svg.line(scale.at(end), scale.at(end), middle - 6, middle + 6, f"whisker {tone}")
            for end in (low, high)
        ]
    if value is not None:
        parts.append(
            svg.tag(
                "circle", cx=svg.percent(scale.at(value)), cy=middle, r=4.5, class_=f"dot {tone}"
            )
        )
    return svg.titled(title, parts, height=height, class_="plot")


def boxes(scale: Axis, rows: Sequence[Mapping[str, Any]], *, title: str, tone: str) -> Markup:
    """Return one thin box plot for each process restart, one under the other."""
    pitch, thick, top = 11.0, 7.0, 5.0
    height = 2 * top + pitch * max(1, len(rows)) - (pitch - thick)
    parts = grid(scale, height)
    for index, row in enumerate(rows):
        y = top + pitch * index
        x1, x2 = scale.at(row["q1_ns"]), scale.at(row["q3_ns"])
        middle, at = y + thick / 2, scale.at(row["median_ns"])
        parts.append(
            svg.line(
                scale.at(row["low_ns"]), scale.at(row["high_ns"]), middle, middle, f"whisker {tone}"
            )
        )
        parts.append(
            svg.tag(
                "rect", x=svg.percent(x1), y=y, width=svg.percent(max(x2 - x1, 0.15)), height=thick,
                class_=f"box {tone}",
            )
        )  # fmt: skip
        parts.append(svg.line(at, at, y - 1, y + thick + 1, f"median {tone}"))
    return svg.titled(title, parts, height=height, class_="plot")


def pair(scale: Axis, before: float | None, after: float | None, *, title: str) -> Markup:
    """Return two dots, dense hollow and slim filled, with a line from the one to the other."""
    height, middle = 26.0, 13.0
    parts = grid(scale, height)
    if before is not None and after is not None:
        parts.append(svg.line(scale.at(before), scale.at(after), middle, middle, "whisker slim"))
    for value, tone in ((before, "dense"), (after, "slim")):
        if value is not None:
            parts.append(
                svg.tag(
                    "circle", cx=svg.percent(scale.at(value)), cy=middle, r=4, class_=f"dot {tone}"
                )
            )
    return svg.titled(title, parts, height=height, class_="plot")


def bar(share: float, *, title: str) -> Markup:
    """Return the dense network's bar as an outline with the slim one's filled inside it."""
    whole = max(1.0, share)
    parts = [
        svg.tag(
            "rect", x=0, y=0.5, width=svg.percent(100 / whole), height=9, rx=2, class_="outline"
        ),
        svg.tag(
            "rect",
            x=0,
            y=0.5,
            width=svg.percent(100 * share / whole),
            height=9,
            rx=2,
            class_="fill",
        ),
    ]
    return svg.titled(title, parts, height=10, class_="bar")


def losses(heights: Sequence[float], leaves: Sequence[float] | None, *, title: str) -> Markup:
    """Return a column for each loss, first to leave at the left; what leaves is pale.

    Args:
        heights: 0 to 1; a column of 0 is still a line, so that a unit without loss is seen.
        leaves: the share of each column that leaves, drawn from its foot; None: nothing is known to.
        title: what a screen reader says.
    """
    height, pitch = 34.0, 100 / max(1, len(heights))
    parts = [svg.line(0.0, 100.0, height, height, "grid")]
    for index, share in enumerate(heights):
        tall = max(1.5, (height - 2) * share)
        gone = leaves[index] if leaves is not None else 0.0
        x, wide = svg.percent(pitch * index), svg.percent(pitch * 0.86)
        stays, top = tall * (1 - gone), height - tall
        for class_, y, size in (
            ("fill", top, stays),
            ("behind", top + stays, tall - stays),
            ("cap", top + stays, min(1.5, tall - stays)),
        ):
            if size > 0:
                parts.append(svg.tag("rect", x=x, y=y, width=wide, height=size, class_=class_))
    return svg.titled(title, parts, height=height, class_="plot")


# ---------------------------------------------------------------- all layers


def columns(
    layers: Sequence[Mapping[str, Any]],
    before: str,
    after: str,
    *,
    title: str,
    text: Callable[[float], str],
    unit: str,
    height: float = 132.0,
) -> Markup:
    """Return a column for each layer: dense behind, slim filled in front, numbers at the left.

    Where most layers are far below the largest the scale is a square root (:func:`uses_root`); a
    last layer that would dwarf the rest is cut off (:func:`cut_off`).
    """
    drawn = layers[:-1] if cut_off(layers, before) else layers
    most = max((float(layer[before]) for layer in drawn), default=1.0) or 1.0
    rooted = uses_root(layers, before)

    def up(value: float) -> float:
        portion = min(1.0, value / most)
        return height * (math.sqrt(portion) if rooted else portion)

    marks = [most / 4 if rooted else most / 2, most]
    numbers = [svg.text(text(m), x="100%", y=height - up(m) + 4, text_anchor="end") for m in marks]
    gutter = svg.tag(
        "svg",
        Markup("").join(numbers),
        class_="gutter",
        width=46,
        height=height,
        aria_hidden="true",
    )
    pitch = 100 / max(1, len(layers))
    parts = [svg.line(0.0, 100.0, height - up(m), height - up(m), "grid") for m in (0.0, *marks)]
    for index, layer in enumerate(layers):
        x, wide = svg.percent(pitch * (index + 0.08)), svg.percent(pitch * 0.84)
        tall, small = up(float(layer[before])), up(float(layer[after]))
        said = f"{layer['name']}: {text(layer[before])} → {text(layer[after])} {unit}"
        column = [
            svg.tag("title", escape(words.plain(said))),
            svg.tag("rect", x=x, y=height - tall, width=wide, height=tall, class_="behind"),
            svg.tag("rect", x=x, y=height - tall, width=wide, height=1.5, class_="cap"),
            svg.tag("rect", x=x, y=height - small, width=wide, height=small, class_="fill"),
        ]
        parts.append(svg.tag("g", Markup("").join(column)))
    plot = svg.titled(title, parts, height=height, class_="plot")
    return svg.tag("div", gutter + plot, class_="columns")


def uses_root(layers: Sequence[Mapping[str, Any]], before: str) -> bool:
    """Return whether :func:`columns` draws a square-root scale: a quarter is under a 16th."""
    drawn = layers[:-1] if cut_off(layers, before) else layers
    values = sorted(float(layer[before]) for layer in drawn)
    return bool(values) and values[-1] > 16 * values[len(values) // 4]


def cut_off(layers: Sequence[Mapping[str, Any]], before: str) -> bool:
    """Return whether the last column, the output, is far above all others (1000 classes)."""
    *others, last = (float(layer[before]) for layer in layers) if layers else (0.0,)
    return bool(others) and last > 1.5 * max(others)


def _runs(layers: Sequence[Mapping[str, Any]], depth: int) -> list[tuple[tuple[str, ...], int]]:
    """Return ``(first components of the name, how many layers in a row share them)``."""
    names = (tuple(str(layer["name"]).split(".")[:depth]) for layer in layers)
    return [(name, len(list(same))) for name, same in itertools.groupby(names)]


def stages(layers: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the strip under :func:`columns`: the parts of the network and their names."""
    runs = _runs(layers, 1)
    for depth in (2, 3):  # everything may live in `features`: then its parts are the parts
        deeper = _runs(layers, depth)
        if max(n for _, n in runs) > 0.6 * len(layers) and len(deeper) <= _MOST_PARTS:
            runs = deeper
    narrow = max(_NARROW, 3.0 * len(layers) - 46)  # many layers get a wider, scrolling picture
    parts, start = [], 0
    for path, length in runs:
        name = path[-1]
        x1, x2 = 100 * start / len(layers), 100 * (start + length) / len(layers)
        start += length
        if length > 1 or len(layers) <= 12:
            parts.append(svg.line(x1 + 0.15, x2 - 0.15, 4.0, 4.0, "bracket"))
        shown = words.clip(name, 24)
        if (x2 - x1) / 100 * narrow >= len(shown) * _CHARACTER:
            parts.append(svg.text(shown, x=svg.percent((x1 + x2) / 2), y=17, text_anchor="middle"))
    return svg.tag(
        "div", svg.tag("span", "", class_="gutter") + svg.strip(parts, 21), class_="columns"
    )
