"""What ``score`` and ``inspect scores.npz`` print: a ranking that a person can read.

A line for each group, in the order of the network, of at most 100 columns (fewer where the terminal has fewer):
its units, how many of them are free, the losses in the order in which units leave, and who leaves first.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy.report import words
from mint_deploy.report.ranking import heights, means, spread_text

__all__ = ["lines", "say"]

#: a line as pieces of text with their style for a terminal
Line = list[tuple[str, str]]

WIDEST, NARROWEST = 100, 72
BARS = "▁▂▃▄▅▆▇█"
#: for a terminal that does not know them
_PLAIN = str.maketrans(
    {**dict(zip(BARS, ".:-=+*%#", strict=True)), "…": "~", "±": "+-", "\N{MINUS SIGN}": "-"}
)
#: groups named as those that lose least and most
_ENDS = 3


def say(
    body: Mapping[str, Any], *, run: Path | None = None, seconds: Mapping[str, float] | None = None
) -> None:
    """Print a ranking on stdout, in colours where that is a terminal.

    Args:
        body: from :func:`mint_deploy.report.ranking.ranking`.
        run: the run folder, for what to do next.
        seconds: stage -> how long it took.
    """
    width = shutil.get_terminal_size((WIDEST, 24)).columns
    for line in lines(body, width=width, run=run, seconds=seconds or {}):
        _print(line)


def lines(
    body: Mapping[str, Any],
    *,
    width: int = WIDEST,
    run: Path | None = None,
    seconds: Mapping[str, float],
) -> list[Line]:
    """Return the lines of :func:`say`, each at most ``width`` columns (from 72 to 100)."""
    width = max(NARROWEST, min(WIDEST, width))
    out: list[Line] = [[(text, "bold")] for text in _wrapped(_head(body, seconds), width)]
    out += [[(text, "")] for said in _about(body) for text in _wrapped(said, width)]
    if body["groups"]:
        out += [[], *_table(body, width), []]
    out += [[(text, "")] for said in _notes(body) for text in _wrapped(said, width)]
    if run is not None:
        command = f"mint-deploy plan {shlex.quote(str(run))} --macs 0.5"
        out.append([("next: ", "bold"), (words.plain(command), "cyan")])
    return out


def _print(line: Line) -> None:
    text = "".join(piece for piece, _ in line)
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
        print(plain)
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text.assemble(*line), soft_wrap=True)
    else:
        print(text)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        words.plain(text), width, break_long_words=True, break_on_hyphens=False
    ) or [""]


# ---------------------------------------------------------------- sentences


def _head(body: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    method = body["criterion"] + (f" ({body['estimator']})" if body["estimator"] else "")
    units = sum(g["units"] for g in body["groups"])
    took = {name: f" in {words.duration(1e9 * s)}" for name, s in seconds.items()}
    said = f"{words.count(units)} units in {len(body['groups'])} groups ranked by {method}"
    said += took.get("score", "")
    if body["images"] is None:
        return f"{said}, seed {body['seed']}"
    seen = f" (seen{took['sample']})" if "sample" in took else ""
    return f"{said}, on {words.count(body['images'])} images{seen}, seed {body['seed']}"


def _about(body: Mapping[str, Any]) -> list[str]:
    if not body["groups"]:
        return ["No group has a score: every group stays whole."]
    said = []
    settings = {k: v for k, v in body["settings"].items() if k != "sample_seed" and v is not None}
    if settings:
        said.append("Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items()) + ".")
    said.append(
        "Losses can be compared between groups"
        + (
            ", in nats of the predicted distribution."
            if body["of_output"]
            else f", in {body['unit']}."
            if body["unit"]
            else "."
        )
        if body["comparable"]
        else "Losses cannot be compared between groups: every group has its own scale."
    )
    scale = body["scale"]
    bars = f"{BARS[0]} to {BARS[-1]} on a log scale"
    if scale and scale[1] > 0:
        bars += f", {words.figure(scale[0])} to {words.figure(scale[1])} {body['unit']}".rstrip()
    said.append(
        "Groups stand in the order of the network, the losses of each in the order in which its "
        f"units leave ({bars}). Free: units that cost nearly nothing, each {body['nearly']}."
    )
    return said


def _notes(body: Mapping[str, Any]) -> list[str]:
    groups = body["groups"]
    said = []
    middles = [(_middle(g), g["name"]) for g in groups if g["greatest"] is not None]
    if body["comparable"] and len(middles) > _ENDS:
        middles.sort(key=lambda pair: pair[0])
        least, most = (
            ", ".join(f"{words.clip(name, 40)} ({words.figure(loss)})" for loss, name in ends)
            for ends in (middles[:_ENDS], middles[: -_ENDS - 1 : -1])
        )
        said.append(f"A unit costs least (its group's mean) in {least}; most in {most}.")
    stays = [g for g in groups if g["stays"]]
    if stays:
        units = sum(g["stays"] for g in stays)
        said.append(f"{units} units in {len(stays)} groups stay whatever the budget.")
    if groups:
        free = sum(g["nothing"] for g in groups)
        total = sum(g["units"] for g in groups)
        said.append(f"{words.count(free)} of {words.count(total)} units are free.")
    return said


def _middle(group: Mapping[str, Any]) -> float:
    return float(np.mean(group["columns"]))


# ---------------------------------------------------------------- the table


def _table(body: Mapping[str, Any], width: int) -> list[Line]:
    """Return the head and a line for each group; names and first units share what is left."""
    groups = body["groups"]
    bars = 16 if width >= 90 else 10
    low, high = (max(len(words.figure(g[end])) for g in groups) for end in ("least", "greatest"))
    head = f"loss, {body['unit']}" if body["unit"] else "loss"
    ranged = max(low + len(" to ") + high, len(head))
    spread = "      ±" if any(g["relative_spread"] is not None for g in groups) else ""
    fixed = len("  units  free  ") + bars + 2 + ranged + len(spread) + 2
    longest = max(len(words.plain(g["name"])) for g in groups)
    name = max(12, min(longest, width - 2 - fixed - 14))
    first = width - 2 - name - fixed
    top = f"  {'group':{name}}  units  free  {'losses':{bars}}  {head:{ranged}}{spread}  first out"
    out: list[Line] = [[(top[:width].rstrip(), "dim")]]
    for group in groups:
        span = f"{words.figure(group['least']):>{low}} to {words.figure(group['greatest']):>{high}}"
        share = f"  {spread_text(group['relative_spread']):>5}" if spread else ""
        columns = means(np.asarray(group["columns"], dtype=np.float64), bars)
        out.append(
            [
                (f"  {words.clip(group['name'], name):{name}}", "bold"),
                (f"  {group['units']:5}  {group['nothing']:4}  ", ""),
                (f"{_bars(columns, body['scale']):{bars}}", "cyan"),
                (f"  {span:{ranged}}{share}  {_first(group, first)}".rstrip(), ""),
            ]
        )
    return out


def _bars(columns: Sequence[float], scale: Sequence[float] | None) -> str:
    return "".join(BARS[min(7, int(8 * h))] for h in heights(columns, scale))


def _first(group: Mapping[str, Any], width: int) -> str:
    """Return the first units to leave, as many as fit: ``12 3 7 ..``."""
    for count in range(len(group["first"]), 0, -1):
        more = " .." if count < group["units"] else ""
        said = " ".join(map(str, group["first"][:count])) + more
        if len(said) <= width:
            return said
    return ""
