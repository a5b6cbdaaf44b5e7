"""The page: one self-contained HTML file, no script, no request, light, dark, phone and paper.

Jinja escapes every text (names of layers and classes come from strangers); :func:`words.plain`
takes control characters out first. Pictures come from :mod:`mint_deploy.report.charts`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mint_deploy import files
from mint_deploy._version import __version__
from mint_deploy.overview import Overview
from mint_deploy.report import charts, heatmap, pictures, ranking, resources, view, words
from mint_deploy.report.cards import cards
from mint_deploy.report.dependency import picture
from mint_deploy.report.doubted import parts
from mint_deploy.report.machines import machine_groups
from mint_deploy.report.precision import floats, rows
from mint_deploy.report.tradeoff import tradeoff, worth_showing

__all__ = ["page", "page_of_measurements"]

_TEMPLATES = Path(__file__).parent / "templates"

#: classes shown openly; of more, those that changed most
_CLASSES = 20
#: groups of units, and matrices of dependency, shown openly
_GROUPS, _MAPS = 24, 2


def page(body: Mapping[str, Any]) -> str:
    """Return the whole HTML document for the body of report.json."""
    cut = body["widths"].get("layers", [])
    return _rendered(
        "report.html.j2",
        body,
        tradeoff=tradeoff(body),
        accuracy=_accuracy(body),
        classes=_classes(body),
        dependency=_dependency(body),
        scores=_scores(body),
        board=view.board_rows(body),
        precision=_precision(body["precision"]),
        settings=view.settings_rows(body["run"]),
        stages=[(k, words.duration(1e9 * v)) for k, v in body["run"]["seconds"].items()],
        times=resources.layers(body["latency"], cut),
        pair=True,
    )


def _precision(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """What precision.html.j2 prints: rows and layers in float32, or why it could not be read; None: float32."""
    if section.get("networks"):
        return {"rows": rows(section), "floats": floats(section), "note": ""}
    return {"rows": [], "floats": [], "note": section["note"]} if section.get("damaged") else None


def page_of_measurements(body: Mapping[str, Any]) -> str:
    """Return the whole HTML document for measurements without a run folder (:mod:`mint_deploy.report.bare`)."""
    return _rendered(
        "measurements.html.j2",
        body,
        scores=None,
        layers=resources.layers(body["latency"]),
        pair=len(body["labels"]) > 1,
    )


def _rendered(template: str, body: Mapping[str, Any], **more: Any) -> str:
    """Render a template with what both pages show: cards, times, memory, machine."""
    latency, machine = body["latency"], body["machine"]
    rows = view.latency_rows(body)
    return (
        _environment()
        .get_template(template)
        .render(
            body=body,
            cards=cards(view.before_after(body), body["headline"]),
            ratios=pictures.ratios(latency),
            distributions=pictures.distributions(latency),
            sweeps=pictures.sweeps(latency),
            memory=resources.memory(latency),
            states=resources.states(latency, machine),
            timed=[row for row in rows if row["scenario"] != "offline"],
            gaps=view.gaps(rows),
            machines=[(m["hostname"], machine_groups(m)) for m in machine.get("machines", [])],
            **more,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """Return where the templates are compiled, once a process."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        charts=charts,
        doubt_parts=parts,
        heatmap=heatmap,
        words=words,
        view=view,
        version=__version__,
    )
    return environment


def _safe(value: Any) -> Any:
    """Return what a template prints: plain text whose units stay at their numbers, or markup."""
    if value is None:
        return words.NOT_HERE
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(
        r"(?<=\d) (?=%|[kMGT]?B\b|[mµn]?s\b|[kMG]\b)", "\N{NO-BREAK SPACE}", words.plain(value)
    )


def _dependency(body: Mapping[str, Any]) -> Markup | None:
    """Return the picture of layers and groups, with what the plan took away in pale."""
    found = body["dependency"]
    if not found["done"]:
        return None
    overview = files.decode(Overview, found["overview"])
    return Markup(picture(overview, found["keep"], inline=True))  # noqa: S704 - its texts are escaped


def _scores(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return rows with a picture of each group's losses, and the heat maps; the first of both are open."""
    found = body["scores"]
    if not found["done"]:
        return None
    rows = [_scored(group, found["scale"], found["unit"]) for group in found["groups"]]
    value = "dependency" + (f" ({found['estimator']})" if found["estimator"] else "")
    value += f", {found['unit']}" if found["unit"] else ""
    maps = [heatmap.drawn(m, title=m["consumer"], value=value) for m in found["maps"]]
    return {
        "found": found,
        "rows": rows[:_GROUPS],
        "more": rows[_GROUPS:],
        "spread": any(row["spread"] for row in rows),
        "maps": maps[:_MAPS],
        "more_maps": maps[_MAPS:],
    }


def _scored(group: Mapping[str, Any], scale: Sequence[float] | None, unit: str) -> dict[str, Any]:
    ends = [words.figure(group[end]) for end in ("least", "greatest")]
    kept = group.get("kept")
    said = f"{group['name']}: {group['units']} units, losses {ends[0]} to {ends[1]} {unit}".rstrip()
    if kept is not None:
        said += f"; {group['units'] - kept} leave, {kept} stay"
    columns = [float("nan") if v is None else v for v in group["columns"]]
    return {
        "name": group["name"],
        "plot": charts.losses(ranking.heights(columns, scale), group.get("leaves"), title=said),
        "units": f"{group['units']} → {kept}" if kept is not None else str(group["units"]),
        "nothing": words.count(group["nothing"]),
        "least": ends[0],
        "greatest": ends[1],
        "spread": ranking.spread_text(group["relative_spread"]),
    }


def _accuracy(body: Mapping[str, Any]) -> dict[str, Any] | None:
    steps = view.steps(body)
    found = [s.found for s in steps if s.found]
    if not found:
        return None
    scale = charts.axis(worth_showing(steps), unit=" %", bounds=(0.0, 100.0))
    dense = next((s.found for s in steps if s.step == "dense"), None)
    rows = []
    for step in steps:
        f = step.found
        part = body["accuracy"]["steps_part"]
        value = step.test if part == "test" else step.validation
        span = step.test_span if part == "test" else step.validation_span
        tone = step.step if step.step in ("dense", "control") else "slim"
        plot = (
            charts.interval(
                scale,
                100 * f["top1"],
                100 * f["low"],
                100 * f["high"],
                title=f"{step.label}: {value} ({span})",
                tone=tone,
                reference=100 * dense["top1"] if dense else None,
            )
            if f
            else None
        )
        rows.append({"step": step, "plot": plot, "tone": tone})
    arrow = any(100 * f["top1"] < scale.low for f in found)
    return {"rows": rows, "ticks": charts.ticks(scale), "arrow": arrow}


def _classes(body: Mapping[str, Any]) -> dict[str, Any] | None:
    found = body["accuracy"].get("classes") or []
    if not found:
        return None
    scale = charts.axis(
        [100 * c[side] for c in found for side in ("dense", "slim") if c[side] is not None],
        unit=" %",
        bounds=(0.0, 100.0),
    )
    shown = found
    if len(found) > _CLASSES:
        shown = sorted(found, key=lambda c: -abs(c["change"] or 0.0))[:_CLASSES]
    rows = []
    for c in shown:
        before, after = words.percent(c["dense"]), words.percent(c["slim"])
        sides = (100 * c[side] if c[side] is not None else None for side in ("dense", "slim"))
        plot = charts.pair(scale, *sides, title=f"{c['name']}: dense {before}, slim {after}")
        rows.append(
            {
                "name": c["name"],
                "dense": before,
                "slim": after,
                "change": words.points(c["change"]),
                "plot": plot,
            }
        )
    return {"rows": rows, "ticks": charts.ticks(scale), "total": len(found)}
