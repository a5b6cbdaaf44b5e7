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

from mint_deploy.report import words

__all__ = [
    "Axis",
    "axis",
    "bar",
    "boxes",
    "columns",
    "interval",
    "losses",
    "pair",
    "stages",
    "ticks",
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


# ---------------------------------------------------------------- pieces


def _tag(name: str, content: str | None = None, **attributes: object) -> Markup:
    """Return one element; every attribute's value is escaped, ``content`` must be safe already."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{pairs}/>" if content is None else f"<{name}{pairs}>{content}</{name}>")  # noqa: S704 - values are escaped above, content is made of these tags


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def _percent(value: float) -> str:
    return f"{_short(value)}%"


def _text(content: object, **attributes: object) -> Markup:
    return _tag("text", escape(words.plain(content)), **attributes)


def _titled(
    title: str, parts: Iterable[str], *, height: float, class_: str, **more: object
) -> Markup:
    """Return the ``<svg>`` with its title: what a screen reader says and a pointer shows."""
    said = words.plain(title)
    inside = _tag("title", escape(said)) + Markup("").join(parts)
    return _tag(
        "svg",
        inside,
        class_=class_,
        role="img",
        aria_label=said,
        width="100%",
        height=height,
        **more,
    )


def _line(x1: float, x2: float, y1: float, y2: float, class_: str) -> Markup:
    return _tag("line", x1=_percent(x1), x2=_percent(x2), y1=y1, y2=y2, class_=class_)


def _grid(scale: Axis, height: float) -> list[Markup]:
    return [_line(scale.at(t), scale.at(t), 0.0, height, "grid") for t in scale.ticks]


def _strip(parts: Iterable[str], height: int) -> Markup:
    """Return an ``<svg>`` of words that others say already: hidden from screen readers."""
    inside = Markup("").join(parts)
    return _tag("svg", inside, class_="plot", width="100%", height=height, aria_hidden="true")


# ---------------------------------------------------------------- one row of a table


def ticks(scale: Axis) -> Markup:
    """Return the row of numbers under a column of plots that share ``scale``."""
    parts = []
    for tick in scale.ticks:
        at = scale.at(tick)
        anchor = "start" if at < 4 else "end" if at > 96 else "middle"
        parts.append(_text(scale.text(tick), x=_percent(at), y=12, text_anchor=anchor))
    return _strip(parts, 16)


def interval(
    scale: Axis,
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    title: str,
    tone: str = "slim",
    reference: float | None = None,
) -> Markup:
    """Return a dot with its interval; ``reference`` is marked by a dashed line.

    A value below the axis is an arrow at its edge.
    """
    height, middle = 44.0, 22.0
    parts = _grid(scale, height)
    if reference is not None:
        parts.append(_line(scale.at(reference), scale.at(reference), 0.0, height, "reference"))
    if value is not None and value < scale.low:
        parts.append(_tag("polygon", points="0,22 10,16 10,28", class_=f"arrow {tone}"))
        return _titled(title, parts, height=height, class_="plot")
    if low is not None and high is not None:
        parts.append(_line(scale.at(low), scale.at(high), middle, middle, f"whisker {tone}"))
        parts += [
            _line(scale.at(end), scale.at(end), middle - 6, middle + 6, f"whisker {tone}")
            for end in (low, high)
        ]
    if value is not None:
        parts.append(
            _tag("circle", cx=_percent(scale.at(value)), cy=middle, r=4.5, class_=f"dot {tone}")
        )
    return _titled(title, parts, height=height, class_="plot")


def boxes(scale: Axis, rows: Sequence[Mapping[str, Any]], *, title: str, tone: str) -> Markup:
    """Return one thin box plot for each process restart, one under the other."""
    pitch, thick, top = 11.0, 7.0, 5.0
    height = 2 * top + pitch * max(1, len(rows)) - (pitch - thick)
    parts = _grid(scale, height)
    for index, row in enumerate(rows):
        y = top + pitch * index
        x1, x2 = scale.at(row["q1_ns"]), scale.at(row["q3_ns"])
        middle, at = y + thick / 2, scale.at(row["median_ns"])
        parts.append(
            _line(
                scale.at(row["low_ns"]), scale.at(row["high_ns"]), middle, middle, f"whisker {tone}"
            )
        )
        parts.append(
            _tag(
                "rect", x=_percent(x1), y=y, width=_percent(max(x2 - x1, 0.15)), height=thick,
                class_=f"box {tone}",
            )
        )  # fmt: skip
        parts.append(_line(at, at, y - 1, y + thick + 1, f"median {tone}"))
    return _titled(title, parts, height=height, class_="plot")


def pair(scale: Axis, before: float | None, after: float | None, *, title: str) -> Markup:
    """Return two dots, dense hollow and slim filled, with a line from the one to the other."""
    height, middle = 26.0, 13.0
    parts = _grid(scale, height)
    if before is not None and after is not None:
        parts.append(_line(scale.at(before), scale.at(after), middle, middle, "whisker slim"))
    for value, tone in ((before, "dense"), (after, "slim")):
        if value is not None:
            parts.append(
                _tag("circle", cx=_percent(scale.at(value)), cy=middle, r=4, class_=f"dot {tone}")
            )
    return _titled(title, parts, height=height, class_="plot")


def bar(share: float, *, title: str) -> Markup:
    """Return the dense network's bar as an outline with the slim one's filled inside it."""
    whole = max(1.0, share)
    parts = [
        _tag("rect", x=0, y=0.5, width=_percent(100 / whole), height=9, rx=2, class_="outline"),
        _tag(
            "rect", x=0, y=0.5, width=_percent(100 * share / whole), height=9, rx=2, class_="fill"
        ),
    ]
    return _titled(title, parts, height=10, class_="bar")


def losses(heights: Sequence[float], leaves: Sequence[float] | None, *, title: str) -> Markup:
    """Return a column for each loss, first to leave at the left; what leaves is pale.

    Args:
        heights: 0 to 1; a column of 0 is still a line, so that a unit without loss is seen.
        leaves: the share of each column that leaves, drawn from its foot; None: nothing is known to.
        title: what a screen reader says.
    """
    height, pitch = 34.0, 100 / max(1, len(heights))
    parts = [_line(0.0, 100.0, height, height, "grid")]
    for index, share in enumerate(heights):
        tall = max(1.5, (height - 2) * share)
        gone = leaves[index] if leaves is not None else 0.0
        x, wide = _percent(pitch * index), _percent(pitch * 0.86)
        stays, top = tall * (1 - gone), height - tall
        for class_, y, size in (
            ("fill", top, stays),
            ("behind", top + stays, tall - stays),
            ("cap", top + stays, min(1.5, tall - stays)),
        ):
            if size > 0:
                parts.append(_tag("rect", x=x, y=y, width=wide, height=size, class_=class_))
    return _titled(title, parts, height=height, class_="plot")


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
    numbers = [_text(text(m), x="100%", y=height - up(m) + 4, text_anchor="end") for m in marks]
    gutter = _tag(
        "svg",
        Markup("").join(numbers),
        class_="gutter",
        width=46,
        height=height,
        aria_hidden="true",
    )
    pitch = 100 / max(1, len(layers))
    parts = [_line(0.0, 100.0, height - up(m), height - up(m), "grid") for m in (0.0, *marks)]
    for index, layer in enumerate(layers):
        x, wide = _percent(pitch * (index + 0.08)), _percent(pitch * 0.84)
        tall, small = up(float(layer[before])), up(float(layer[after]))
        said = f"{layer['name']}: {text(layer[before])} → {text(layer[after])} {unit}"
        column = [
            _tag("title", escape(words.plain(said))),
            _tag("rect", x=x, y=height - tall, width=wide, height=tall, class_="behind"),
            _tag("rect", x=x, y=height - tall, width=wide, height=1.5, class_="cap"),
            _tag("rect", x=x, y=height - small, width=wide, height=small, class_="fill"),
        ]
        parts.append(_tag("g", Markup("").join(column)))
    plot = _titled(title, parts, height=height, class_="plot")
    return _tag("div", gutter + plot, class_="columns")


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
            parts.append(_line(x1 + 0.15, x2 - 0.15, 4.0, 4.0, "bracket"))
        shown = words.clip(name, 24)
        if (x2 - x1) / 100 * narrow >= len(shown) * _CHARACTER:
            parts.append(_text(shown, x=_percent((x1 + x2) / 2), y=17, text_anchor="middle"))
    return _tag("div", _tag("span", "", class_="gutter") + _strip(parts, 21), class_="columns")
