"""The picture of a network's dependency graph: one row a layer, one colour for what leaves together.

Left of the middle stands what a layer reads, right of it what it makes, as long as it is wide; between
them run *spines*: groups that several layers share, with a dot at each layer that must shrink with the others. The
SVG is self-contained, without a script; horizontal positions are percentages and vertical ones pixels, so it
takes the width it is given and its text keeps its size.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mint_deploy.overview import Overview, Share
from mint_deploy.report import words
from mint_deploy.report.dependency_rows import HUES, Row, Spine, place, rows_of, spines_of, tones_of

__all__ = ["picture"]

#: columns in percent: the bars' inner ends, their greatest length, the share of MACs
_READS, _MAKES, _LONGEST = 40.0, 50.0, 22.0
_SPINES, _SPINES_WIDTH = 41.4, 7.2
_MACS, _MACS_LONGEST = 82.0, 10.0
#: characters of a line that fits a phone
_LINE = 54
#: rows at least so far apart have a name each
_NAMED = 10.0
#: reasons for freezing that the legend lists
_REASONS = 4


def picture(
    overview: Overview, keep: Mapping[str, int] | None = None, *, inline: bool = False
) -> str:
    """Return the SVG of a network's layers and pruning groups.

    Args:
        overview: from :func:`mint_deploy.survey.survey`, or read from its file.
        keep: how many units of a group stay (by its name), to draw what a plan takes away in pale.
        inline: it will stand in an HTML page, which needs no namespace.

    Returns:
        one ``<svg>`` element, as wide as its surroundings.
    """
    kept = _kept(overview, keep)
    rows = rows_of(overview, kept)
    row_of = {p: i for i, row in enumerate(rows) for p in row.positions}
    spines = spines_of(overview, row_of)
    tones = tones_of(overview, spines)
    rooted = _rooted(rows)
    legend = _legend(overview, spines, cut=keep is not None, rooted=rooted)
    pitch, height, heads, bands = place(rows, top=46.0 + 17.0 * len(legend) + 34.0)
    for spine in spines:
        spine.dots = [rows[r].y + pitch / 2 for r in spine.rows]
    scale = _scale(rows)
    most = max((row.macs for row in rows), default=1) or 1
    thick = round(min(12.0, 0.7 * pitch), 1)
    lanes = max((s.lane for s in spines), default=0) + 1
    drawn = [_drawn(row, overview, tones, kept, scale, most) for row in rows]
    return _template().render(
        words=words,
        o=overview,
        title=_title(overview),
        said=_said(overview),
        inline=inline,
        summary=_summary(overview),
        legend=legend,
        rows=drawn,
        spines=spines,
        lane_x={n: _SPINES + _SPINES_WIDTH * (n + 0.5) / lanes for n in range(lanes)},
        pitch=pitch,
        thick=thick,
        inset=round((pitch - thick) / 2, 1),
        height=height,
        heads=heads,
        bands=bands,
        named=pitch >= _NAMED,
        captions=heads[0]["y"] - 8 if heads else height,
        columns={"reads": _READS, "makes": _MAKES, "macs": _MACS, "names": _READS - _LONGEST - 1},
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("dependency.svg.j2")


def _finalize(value: Any) -> Any:
    """Return what the template prints: short numbers, and text that no parser is fooled by."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return words.plain(value) if type(value) is str else value


def _kept(overview: Overview, keep: Mapping[str, int] | None) -> list[float]:
    """Return which part of each group stays."""
    return [
        min(1.0, (keep or {}).get(g.name, g.width) / g.width) if g.width else 1.0
        for g in overview.groups
    ]


# ---------------------------------------------------------------- bars


def _rooted(rows: Sequence[Row]) -> bool:
    """Return whether lengths are square roots: most layers are far narrower than the widest."""
    widths = sorted(row.layer.width for row in rows)
    return bool(widths) and widths[-1] > 5 * widths[len(widths) // 2]


def _scale(rows: Sequence[Row]) -> Callable[[float], float]:
    """Return the function from channels to percent of the picture's width."""
    widest = max((row.layer.width for row in rows), default=1)
    most = max((sum(n for _, n in row.layer.reads) for row in rows), default=1)
    most = max(widest, min(most, 2 * widest))  # a flattened image would dwarf all else: cut off
    rooted = _rooted(rows)

    def length(channels: float) -> float:
        share = min(1.0, channels / max(1, most))
        return _LONGEST * (math.sqrt(share) if rooted else share)

    return length


def _drawn(
    row: Row,
    overview: Overview,
    tones: Sequence[str],
    kept: Sequence[float],
    scale: Callable[[float], float],
    most: int,
) -> dict[str, Any]:
    layer = row.layer
    bars = []
    for side, shares in (("makes", layer.makes), ("reads", layer.reads)):
        total = sum(n for _, n in shares)
        long = scale(total)
        at = 0.0
        for group, channels in _merged(shares, tones, kept) if side == "reads" else shares:
            wide = long * channels / max(1, total)
            stays = wide * kept[group]
            x = _MAKES + at if side == "makes" else _READS - at - wide
            inner = x if side == "makes" else x + wide - stays
            if kept[group] < 1:
                bars.append({"x": x, "wide": wide, "tone": f"{tones[group]} gone", "side": side})
            bars.append({"x": inner, "wide": stays, "tone": tones[group], "side": side})
            at += wide
    share = row.macs / max(1, overview.macs)
    remains = sum(n * kept[g] for g, n in layer.makes)
    return {
        "y": row.y,
        "label": words.clip(row.label, 48),
        "alone": row.alone,
        "bars": bars,
        "width": str(round(remains if any(k < 1 for k in kept) else layer.width)),
        "width_x": _MAKES + scale(layer.width) + 0.8,
        "macs": _MACS_LONGEST * row.macs / most,
        "share": words.share(share) if row.alone else "",
        "said": _row_said(row, overview, share),
    }


def _merged(shares: Sequence[Share], tones: Sequence[str], kept: Sequence[float]) -> list[Share]:
    """Return the shares with neighbours that look alike as one: dense blocks read dozens of groups."""
    runs = itertools.groupby(shares, key=lambda share: (tones[share[0]], kept[share[0]]))
    alike = [list(same) for _, same in runs]
    return [(run[0][0], sum(n for _, n in run)) for run in alike]


def _row_said(row: Row, overview: Overview, share: float) -> str:
    """Return the tooltip of a row."""
    layer = row.layer
    name = layer.name
    if len(row.positions) > 1:
        last = overview.layers[row.positions[-1]].name
        name = f"{name} to {last}, {len(row.positions)} alike"
    lines = [
        f"{name}: {layer.kind}, {words.count(layer.width)} channels, {words.share(share)} of the MACs"
    ]
    for verb, shares in (("makes", layer.makes), ("reads", layer.reads)):
        for position, channels in shares[:4]:
            group = overview.groups[position]
            note = f" ({group.status}: {words.clip(group.reason, 120)})" if group.reason else ""
            others = len(group.layers) - 1
            tied = (
                f", tied with {others} more layer{'s' * (others > 1)}"
                if others > 0 and verb == "makes"
                else ""
            )
            lines.append(f"{verb} {channels} of group {words.clip(group.name, 80)}{tied}{note}")
        if len(shares) > 4:
            lines.append(f"{verb} of {len(shares) - 4} more groups")
    return "; ".join(lines)


# ---------------------------------------------------------------- words


def _title(overview: Overview) -> str:
    return words.clip(overview.model or "the network", 44)


def _summary(overview: Overview) -> str:
    return (
        f"{len(overview.layers)} layers, {words.short(overview.macs)} MACs, "
        f"{words.short(overview.params)} parameters"
    )


def _said(overview: Overview) -> str:
    """Return what a screen reader says of the whole picture."""
    parts = [
        f"{len(overview.of_status('cuttable'))} groups can be cut",
        f"{len(overview.of_status('restricted'))} are restricted",
        f"{len(overview.of_status('frozen'))} are frozen",
    ]
    return (
        f"Dependency graph of {_title(overview)}: {_summary(overview)}. {', '.join(parts)}. Layers that "
        f"can be cut hold {words.share(overview.cuttable_macs_share)} of the MACs."
    )


def _legend(
    overview: Overview, spines: Sequence[Spine], *, cut: bool, rooted: bool
) -> list[dict[str, Any]]:
    """Return the lines of the legend, each with its swatch."""
    lines: list[dict[str, Any]] = []

    def add(text: str, tone: str = "", swatch: str = "bar") -> None:
        lines.append({"swatch": swatch if tone else "", "tone": tone, "text": text})

    add(
        f"{_count(len(overview.groups) - len(overview.of_status('frozen')), 'group')} can be cut: "
        f"{words.share(overview.cuttable_macs_share)} of the MACs"
    )
    hued = [s for s in spines if s.tone.startswith("hue")]
    for spine in hued[:HUES]:
        about = f" · {_count(spine.group.width, 'unit')} tie {len(spine.group.layers)} layers"
        add(words.clip(spine.group.name, _LINE - len(about)) + about, spine.tone, "spine")
    if len(hued) > HUES:
        add(f"and {len(hued) - HUES} more spines, in the same colours")
    own = len(overview.groups) - len(overview.of_status("frozen")) - len(hued)
    if own:
        add(f"{own}{' others' if hued else ''}, each cut on its own", "own")
    restricted = overview.of_status("restricted")
    if restricted:
        why = words.clip(restricted[0].reason.partition(" (")[0], _LINE - 16)
        add(f"{len(restricted)} restricted: {why}", "own restricted")
    if cut:
        add("pale: what the plan takes away", "own gone")
    reasons = Counter(g.reason for g in overview.of_status("frozen")).most_common()
    for reason, times in reasons[:_REASONS]:
        add(words.clip(f"{times} frozen: {reason}", _LINE), "frozen")
    if len(reasons) > _REASONS:
        rest = reasons[_REASONS:]
        add(f"{sum(n for _, n in rest)} frozen for {_count(len(rest), 'other reason')}", "frozen")
    add("a dot marks a layer that shrinks with its spine" if spines else "")
    if rooted:
        add("lengths of bars are square roots of channels")
    return [line for line in lines if line["text"]]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
