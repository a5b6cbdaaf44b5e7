"""A heat map of any matrix as one self-contained SVG: cells, axes, a colour bar with values, what leaves.

    svg = heat_map(matrix, title="layer2.0.conv2", rows="groups of outputs", columns="groups of inputs")
    Path("dependency.svg").write_text(svg)       # any browser opens it, light or dark

The cells are a small picture (:mod:`mint_deploy.report.pixels`) inside the SVG, so 128 x 128 of them take about
20 kB. A larger matrix is shown as averages, and says so. Numbers along the axes count the matrix's own rows and
columns from 0. Lengths are in units of a picture 360 wide, which is a phone's width; it may be drawn larger.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from mint_deploy.artifacts import Floats
from mint_deploy.errors import DataError
from mint_deploy.report import words
from mint_deploy.report.pixels import BAR, picture

__all__ = ["MOST", "cells", "drawn", "heat_map", "style"]

#: rows and columns that are shown at most
MOST = 128
#: the picture's width, where the cells begin, how wide they are, and how tall at least and at most
_WIDTH, _LEFT, _PLOT, _FLAT, _TALL = 360, 46, 310, 96, 310
#: colours beside the one for "no value"
_COLOURS = 255
_TICKS = 6


def heat_map(
    matrix: npt.ArrayLike,
    *,
    title: str = "",
    rows: str = "groups of outputs",
    columns: str = "groups of inputs",
    value: str = "dependency",
    low: float | None = None,
    high: float | None = None,
    rows_gone: npt.ArrayLike | None = None,
    columns_gone: npt.ArrayLike | None = None,
    most: int = MOST,
) -> str:
    """Return the SVG of a matrix, for example of what ``md.dependency`` returns.

    Args:
        matrix: ``[R, C]``, row 0 at the top; NaN and infinite cells stay open.
        title: stands above the picture.
        rows: what the rows are.
        columns: what the columns are.
        value: what a cell is, with its unit: ``"dependency, nats"``.
        low: value of the darkest colour (default: the least that is shown); cells below are drawn as it.
        high: value of the lightest colour (default: the greatest that is shown).
        rows_gone: ``[R]``, which rows leave (truth values, or the share of each that leaves).
        columns_gone: ``[C]``, the same of the columns.
        most: a matrix with more rows or columns is drawn as averages, in at most so many of them.

    Returns:
        one ``<svg>`` element that needs nothing else; write it to a file, or put it into a page.

    Raises:
        DataError: no matrix, nothing in it, or marks of another length.
    """
    body = cells(
        matrix,
        low=low,
        high=high,
        rows_gone=rows_gone,
        columns_gone=columns_gone,
        most=most,
    )
    return drawn(body, title=title, rows=rows, columns=columns, value=value, alone=True)


# ---------------------------------------------------------------- values


def cells(
    matrix: npt.ArrayLike,
    *,
    low: float | None = None,
    high: float | None = None,
    rows_gone: npt.ArrayLike | None = None,
    columns_gone: npt.ArrayLike | None = None,
    most: int = MOST,
) -> dict[str, Any]:
    """Return what :func:`drawn` draws, as plain values (the arguments are those of :func:`heat_map`).

    Returns:
        ``shape`` of the matrix, ``cells`` shown ``[r, c]``, ``least mean greatest`` of what is shown, ``low
        high`` of the colours, ``missing`` cells, ``rows_gone columns_gone`` (shares of what is shown, or None),
        and ``levels``: ``r * c`` bytes in base64, 0 for no value, else ``low + (high - low) (b - 1) / 254``.

    Raises:
        DataError: see :func:`heat_map`.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"a heat map is drawn of a matrix; found an array of shape {values.shape}, expected "
            "[rows, columns] with something in it"
        )
    if most < 1:
        raise DataError(f"most={most} cells cannot show a matrix; expected 1 or more")
    shown = _averages(values, most)
    known = shown[np.isfinite(shown)]
    least, greatest = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    bottom, top = (
        (least if low is None else float(low)),
        (greatest if high is None else float(high)),
    )
    return {
        "shape": [int(n) for n in values.shape],
        "cells": [int(n) for n in shown.shape],
        "least": least,
        "mean": float(known.mean()) if known.size else 0.0,
        "greatest": greatest,
        "low": bottom,
        "high": top,
        "missing": int(shown.size - known.size),
        "rows_gone": _marks(rows_gone, values.shape[0], most, "rows_gone"),
        "columns_gone": _marks(columns_gone, values.shape[1], most, "columns_gone"),
        "levels": base64.b64encode(_levels(shown, bottom, top).tobytes()).decode(),
    }


def _averages(values: Floats, most: int) -> Floats:
    """Return ``values`` with at most ``most`` entries along each axis: means of the finite ones in a block."""
    finite = np.isfinite(values)
    count, total = finite.astype(np.float64), np.where(finite, values, 0.0)
    for axis, n in enumerate(values.shape):
        if n > most:
            edges = np.arange(most) * n // most
            count = np.add.reduceat(count, edges, axis=axis)
            total = np.add.reduceat(total, edges, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _marks(gone: npt.ArrayLike | None, length: int, most: int, name: str) -> list[float] | None:
    if gone is None:
        return None
    shares = np.asarray(gone, dtype=np.float64)
    if shares.shape != (length,):
        raise DataError(f"{name} has shape {shares.shape}, expected one entry for each of {length}")
    return [float(v) for v in _averages(shares, most)]


def _levels(shown: Floats, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return the colour of each cell: 0 where there is no value, else 1 to 255."""
    finite = np.isfinite(shown)
    safe = np.where(finite, shown, low)
    span = high - low
    portion = np.clip((safe - low) / span, 0.0, 1.0) if span > 0 else np.full(shown.shape, 0.5)
    return np.where(finite, 1 + np.rint(254 * portion), 0).astype(np.uint8)


# ---------------------------------------------------------------- the picture


def drawn(
    body: Mapping[str, Any],
    *,
    title: str = "",
    rows: str = "groups of outputs",
    columns: str = "groups of inputs",
    value: str = "dependency",
    alone: bool = False,
) -> Markup:
    """Return the SVG of what :func:`cells` returned; ``alone``: with its style, for a file of its own."""
    r, c = body["cells"]
    levels = np.frombuffer(base64.b64decode(body["levels"]), dtype=np.uint8).reshape(r, c)
    tall = float(min(_TALL, max(_FLAT, _PLOT * r / c)))
    marked = any(body[side] is not None for side in ("rows_gone", "columns_gone"))
    notes = _notes(body)
    top = 10.0 + (16 if title else 0) + 14 * len(notes) + (10 if marked else 2)
    svg = _template().render(
        words=words,
        alone=alone,
        style=style() if alone else "",
        said=_said(body, title, rows, columns, value),
        title=words.clip(title, 44),
        notes=notes,
        rows=rows,
        columns=columns,
        value=value,
        image=picture(levels),
        bar=BAR,
        width=_WIDTH,
        left=_LEFT,
        plot=_PLOT,
        top=top,
        tall=tall,
        height=top + tall + (92 if marked else 74),
        x_ticks=_ticks(body["shape"][1], _LEFT, _PLOT),
        y_ticks=_ticks(body["shape"][0], top, tall),
        x_gone=_strip(body["columns_gone"], _LEFT, _PLOT),
        y_gone=_strip(body["rows_gone"], top, tall),
        columns_marked=body["columns_gone"] is not None,
        rows_marked=body["rows_gone"] is not None,
        numbers=_numbers(body),
    )
    return Markup(svg)  # noqa: S704 - the template escapes every text


@functools.cache
def style() -> Markup:
    """Return the ``<style>`` that pictures need which are not ``alone``; once a page is enough."""
    return Markup(_environment().get_template("heatmap.css.j2").render())  # noqa: S704 - no text of others


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template() -> jinja2.Template:
    return _environment().get_template("heatmap.svg.j2")


def _finalize(value: Any) -> Any:
    """Return what the template prints: short numbers, and text that no parser is fooled by."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return words.plain(value) if type(value) is str else value


def _notes(body: Mapping[str, Any]) -> list[str]:
    """Return the lines under the title: how large it is, and what a shown cell stands for."""
    shape, shown = body["shape"], body["cells"]
    said = [f"{shape[0]} × {shape[1]}"]
    if shape != shown:
        each = " × ".join(f"{a / b:.3g}" for a, b in zip(shape, shown, strict=True))
        said[0] += f", shown as {shown[0]} × {shown[1]} averages of {each}"
    if body["missing"]:
        count = body["missing"]
        said.append(f"{words.count(count)} cell{'s' * (count > 1)} without a value left open")
    return said


def _said(body: Mapping[str, Any], title: str, rows: str, columns: str, value: str) -> str:
    """Return what a screen reader says of the whole picture."""
    r, c = body["shape"]
    figures = ", ".join(
        f"{name} {words.figure(body[name], 3)}" for name in ("least", "mean", "greatest")
    )
    gone = [
        f"{100 * float(np.mean(body[key])):.0f} % of the {side} leave"
        for key, side in (("rows_gone", "rows"), ("columns_gone", "columns"))
        if body[key] is not None
    ]
    parts = [f"Heat map of {words.clip(title or value, 80)}: {r} {rows} by {c} {columns}"]
    return "; ".join([*parts, f"{value}: {figures}", *gone])


def _ticks(count: int, start: float, length: float) -> list[tuple[int, float]]:
    """Return ``(index, where its middle is)`` for round indices, at most six."""
    step = next(
        s * 10**power
        for power in range(12)
        for s in (1, 2, 5)
        if math.ceil(count / (s * 10**power)) <= _TICKS
    )
    return [(i, start + length * (i + 0.5) / count) for i in range(0, count, step)]


def _strip(gone: Sequence[float] | None, start: float, length: float) -> list[tuple[float, ...]]:
    """Return ``(where, how long, share that leaves)`` of neighbours that leave alike."""
    out: list[tuple[float, ...]] = []
    cell = length / max(1, len(gone or ()))
    for i, share in enumerate(gone or ()):
        at = start + cell * i
        if share <= 0:
            continue
        if out and out[-1][2] == share and math.isclose(out[-1][0] + out[-1][1], at):
            out[-1] = (out[-1][0], out[-1][1] + cell, share)
        else:
            out.append((at, cell, share))
    return out


def _numbers(body: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return the colour bar's numbers: text, position, anchor; ``≤`` where cells lie beyond an end."""
    low, high = body["low"], body["high"]
    if not high > low:
        return [(words.figure(low, 3), _LEFT + _PLOT / 2, "middle")]
    under = "≤ " if body["least"] < low else ""
    over = "≥ " if body["greatest"] > high else ""
    return [
        (under + words.figure(low, 3), float(_LEFT), "start"),
        (words.figure((low + high) / 2, 3), _LEFT + _PLOT / 2, "middle"),
        (over + words.figure(high, 3), float(_LEFT + _PLOT), "end"),
    ]
