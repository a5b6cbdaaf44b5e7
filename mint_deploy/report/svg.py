"""Elements of inline SVG whose texts and attributes are escaped, whatever a name holds.

Horizontal positions are percentages and vertical ones pixels, without a ``viewBox``: a picture takes the width it
is given while its text and strokes keep their size. Curves, which percentages cannot draw, go into a nested
picture that is stretched (:func:`curve`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from mint_deploy.report import words

__all__ = ["curve", "line", "percent", "strip", "tag", "text", "titled"]


def tag(name: str, content: str | None = None, **attributes: object) -> Markup:
    """Return one element; every attribute's value is escaped, ``content`` must be safe already."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{pairs}/>" if content is None else f"<{name}{pairs}>{content}</{name}>")  # noqa: S704 - values are escaped above, content is made of these tags


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def percent(value: float) -> str:
    """Return a position as an attribute: ``25%``."""
    return f"{_short(float(value))}%"


def text(content: object, **attributes: object) -> Markup:
    """Return a ``<text>``."""
    return tag("text", escape(words.plain(content)), **attributes)


def titled(
    title: str, parts: Iterable[str], *, height: float, class_: str, **more: object
) -> Markup:
    """Return the ``<svg>`` with its title: what a screen reader says and a pointer shows."""
    said = words.plain(title)
    inside = tag("title", escape(said)) + Markup("").join(parts)
    return tag(
        "svg",
        inside,
        class_=class_,
        role="img",
        aria_label=said,
        width="100%",
        height=height,
        **more,
    )


def line(x1: float, x2: float, y1: float, y2: float, class_: str) -> Markup:
    """Return a line between two positions, ``x`` in percent and ``y`` in pixels."""
    return tag("line", x1=percent(x1), x2=percent(x2), y1=y1, y2=y2, class_=class_)


def strip(parts: Iterable[str], height: int) -> Markup:
    """Return an ``<svg>`` of words that others say already: hidden from screen readers."""
    inside = Markup("").join(parts)
    return tag("svg", inside, class_="plot", width="100%", height=height, aria_hidden="true")


def curve(
    points: Sequence[tuple[float, float]],
    height: float,
    class_: str,
    *,
    top: float = 0.0,
    closed: bool = False,
) -> Markup:
    """Return a line through points (``x`` in percent, ``y`` in pixels) as a stretched picture of its own.

    It begins ``top`` pixels down. Its strokes keep their width; nothing round may stand in it.
    """
    path = " ".join(f"{_short(float(x))},{_short(float(y))}" for x, y in points)
    drawn = tag(
        "polygon" if closed else "polyline", points=path, class_=class_,
        vector_effect="non-scaling-stroke",
    )  # fmt: skip
    return tag(
        "svg", drawn, x=0, y=top, width="100%", height=height, viewBox=f"0 0 100 {_short(height)}",
        preserveAspectRatio="none", aria_hidden="true",
    )  # fmt: skip
