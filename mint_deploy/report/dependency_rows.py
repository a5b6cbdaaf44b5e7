"""Where everything of the dependency picture stands: rows of layers, folded blocks, lanes of spines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_deploy.overview import Overview, Share, SurveyedGroup, SurveyedLayer
from mint_deploy.report import words

__all__ = ["Row", "Spine", "place", "rows_of", "spines_of", "tones_of"]

#: hues for spines, in the style sheet; networks with more begin anew
HUES = 6
#: more layers than this: repeated blocks are folded
_MANY = 120
#: parts of the network that get a head
_MOST_PARTS = 16


@dataclass(kw_only=True)
class Row:
    """One layer, or the layers at one place of ``times`` equal blocks."""

    layer: SurveyedLayer
    positions: list[int]
    label: str
    stage: str
    block: str
    macs: int
    y: float = 0.0
    alone: bool = False


@dataclass(kw_only=True)
class Spine:
    """A group that several layers make: a line with a dot at each of them."""

    position: int
    group: SurveyedGroup
    rows: list[int]
    lane: int = 0
    tone: str = ""
    dots: list[float] = field(default_factory=list)

    @property
    def long(self) -> bool:
        """Whether it is more than a link between two neighbours (a convolution and its depthwise one)."""
        return len(self.rows) > 2 or self.rows[-1] - self.rows[0] > 1


# ---------------------------------------------------------------- rows


def rows_of(overview: Overview, kept: Sequence[float]) -> list[Row]:
    """Return a row a layer, named within its part of the network; equal blocks in a row are one.

    ``kept`` is which part of each group stays: blocks that are cut unlike are not equal.
    """
    layers = overview.layers
    depth = _depth([layer.name.split(".") for layer in layers])
    rows = []
    for position, layer in enumerate(layers):
        path = layer.name.split(".")
        inside = path[depth:]
        row = Row(
            layer=layer,
            positions=[position],
            label=".".join(inside or path[-1:]),
            stage=".".join(path[:depth]),
            block=_block(path, depth),
            macs=layer.macs,
        )
        rows.append(row)
    return _folded(rows, overview, kept) if len(rows) > _MANY else rows


def _depth(paths: Sequence[Sequence[str]]) -> int:
    """Return how many components of the names tell the parts of the network apart."""
    best = 1
    for depth in (1, 2, 3):
        runs = [len(list(same)) for _, same in itertools.groupby(p[:depth] for p in paths)]
        if len(runs) > min(_MOST_PARTS, max(1, len(paths) // 2)):
            break
        best = depth
        if max(runs, default=0) <= 0.6 * len(paths):
            break
    return best


def _block(path: Sequence[str], depth: int) -> str:
    """Return the block that a layer lies in, ``layers.2.blocks.5``; nothing where it stands alone."""
    inside = path[depth:]
    if len(inside) < 2:
        return ""
    numbered = not inside[0].isdigit() and inside[1].isdigit() and len(inside) > 2
    return ".".join(path[: depth + (2 if numbered else 1)])


def _folded(rows: list[Row], overview: Overview, kept: Sequence[float]) -> list[Row]:
    """Return the rows with three or more equal blocks in a row as one."""
    runs = [list(same) for _, same in itertools.groupby(rows, key=lambda r: (r.stage, r.block))]

    def looks(run: list[Row]) -> tuple[object, ...]:
        return (run[0].stage, *(_look(row, overview, kept) for row in run))

    out: list[Row] = []
    for _, same in itertools.groupby(runs, key=looks):
        blocks = list(same)
        if len(blocks) < 3 or not blocks[0][0].block:
            out += [row for run in blocks for row in run]
            continue
        for alike in zip(*blocks, strict=True):
            first = alike[0]
            leaf = first.layer.name.removeprefix(first.block + ".")
            out.append(
                Row(
                    layer=first.layer,
                    positions=[p for row in alike for p in row.positions],
                    label=f"{len(alike)} × {leaf}",
                    stage=first.stage,
                    block=first.block,
                    macs=sum(row.macs for row in alike),
                )
            )
    return out


def _look(row: Row, overview: Overview, kept: Sequence[float]) -> tuple[object, ...]:
    """Return what must agree for two layers to look the same in two blocks."""

    def shares(found: tuple[Share, ...]) -> tuple[object, ...]:
        groups = [overview.groups[g] for g, _ in found]
        own = [g.name if len(g.layers) > 2 or g.status == "frozen" else "" for g in groups]
        return tuple(
            (name, g.status, n, kept[at])
            for name, g, (at, n) in zip(own, groups, found, strict=True)
        )

    layer = row.layer
    leaf = layer.name.removeprefix(row.block)
    return leaf, layer.kind, layer.width, shares(layer.makes), shares(layer.reads)


def place(
    rows: list[Row], top: float
) -> tuple[float, float, list[dict[str, Any]], list[dict[str, Any]]]:
    """Set where each row stands; return their pitch, the height, the parts' heads and the blocks."""
    count = len(rows)
    pitch = 18.0 if count <= 30 else 15.0 if count <= 75 else 12.0 if count <= 130 else 0.0
    pitch = pitch or max(5.0, math.floor(2 * 1560 / count) / 2)
    heads: list[dict[str, Any]] = []
    bands: list[dict[str, Any]] = []
    y = top
    total = sum(row.macs for row in rows)
    for stage, same in itertools.groupby(rows, key=lambda r: r.stage):
        run = list(same)
        alone = len(run) == 1
        share = sum(row.macs for row in run) / max(1, total)
        if alone:
            run[0].label = ".".join(run[0].layer.name.split(".")[-2:])
        run[0].alone = alone
        heads.append(
            {
                "y": y,
                "text": "" if alone else words.clip(stage, 30),
                "share": "" if alone else words.share(share),
                "line": bool(heads),
            }
        )
        y += 5.0 if alone else 20.0
        for number, (block, inner) in enumerate(itertools.groupby(run, key=lambda r: r.block)):
            inside = list(inner)
            if block and number % 2 == 0:
                bands.append({"y": y, "height": pitch * len(inside)})
            for row in inside:
                row.y, y = y, y + pitch
        y += 7.0
    return pitch, y + 6.0, heads, bands


# ---------------------------------------------------------------- spines and colours


def spines_of(overview: Overview, row_of: Mapping[int, int]) -> list[Spine]:
    """Return the groups that more than one row makes, each in a lane of its own where they overlap."""
    found = []
    for position, group in enumerate(overview.groups):
        rows = sorted({row_of[p] for p in group.layers})
        if len(rows) > 1:
            found.append(Spine(position=position, group=group, rows=rows))
    found.sort(key=lambda s: (not s.long, s.rows[0], -s.rows[-1]))
    lanes: list[list[Spine]] = []
    for spine in found:  # the long ones first, so that the short links stand in lanes of their own
        free = [
            n
            for n, lane in enumerate(lanes)
            if all(o.long == spine.long and o.rows[-1] < spine.rows[0] for o in lane)
        ]
        spine.lane = free[0] if free else len(lanes)
        lanes[spine.lane : spine.lane + 1] = [[*(lanes[spine.lane] if free else ()), spine]]
    return found


def tones_of(overview: Overview, spines: Sequence[Spine]) -> list[str]:
    """Return each group's classes: spines have a hue, all else is plain; frozen and restricted say so."""
    tones = ["own"] * len(overview.groups)
    hue = 0
    for spine in spines:
        if spine.group.status != "frozen" and spine.long:
            tones[spine.position] = f"hue{hue % HUES}"
            hue += 1
    for position, group in enumerate(overview.groups):
        if group.status == "frozen":
            tones[position] = "frozen"
        elif group.status == "restricted":
            tones[position] += " restricted"
    for spine in spines:
        spine.tone = tones[spine.position]
    return tones
