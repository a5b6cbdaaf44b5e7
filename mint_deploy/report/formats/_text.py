"""Figures and names as text in a table: rounded by their interval, and harmless wherever they stand."""

from __future__ import annotations

import re

from mint_deploy.compare import Check
from mint_deploy.limits import GAUGES
from mint_deploy.report import words

__all__ = ["amount", "baseline", "change", "code", "console", "now", "say"]


def amount(value: float | None, unit: str, low: float | None = None, high: float | None = None,
           *, exact: bool = False) -> str:  # fmt: skip
    """Return a figure in the unit that suits it, with its interval in brackets: ``3.41 ms [3.39 to 3.44]``.

    Args:
        value: in ``unit``; None is a dash.
        unit: ``ns``, ``bytes``, ``mJ``, another that is written as it is, or nothing.
        low: the lower end of its interval.
        high: the upper end.
        exact: a count, of which every digit counts.
    """
    if value is None:
        return words.NOT_HERE
    if exact:
        return f"{words.count(value)} {unit}".strip()
    if unit == "ns":
        said, span = words.timed(value, low, high)
    elif unit == "bytes":
        said, span = words.bytes_(value), ""
    elif unit == "mJ":
        said, span = words.energy(value), ""
    else:
        said, span = words.between(value, low, high)
        said = f"{said} {unit}".strip()
    return f"{said} [{span}]" if span else said


def _exact(check: Check) -> bool:
    """Whether no clock moves the figure, so that a single byte may decide."""
    return check.name in GAUGES and not GAUGES[check.name].clock


def baseline(check: Check) -> str:
    """Return what the baseline was."""
    return amount(check.baseline, check.unit, exact=_exact(check))


def now(check: Check) -> str:
    """Return what it is now, with the interval of the comparison."""
    return amount(check.now, check.unit, check.low, check.high, exact=_exact(check))


def change(check: Check) -> str:
    """Return how far it went, with the digits that the interval supports: ``-40.2 %``."""
    if not check.baseline or check.now is None:
        return ""
    share = 100 * (check.now / check.baseline - 1)
    if check.low is None or check.high is None:
        return f"{share:+.3g} %" if share else "0 %"
    places = words.decimals(50 * (check.high - check.low) / check.baseline)
    return f"{share:+.{places}f} %"


# ---------------------------------------------------------------- where it stands


def console(value: object) -> str:
    """Return one line that GitHub's runner does not take for a command, whoever named the network."""
    line = words.plain(value).strip().replace("##[", "# #[")
    return f": :{line[2:]}" if line.startswith("::") else line


def say(value: object, width: int = 1000) -> str:
    """Return text that Markdown takes as text: no tag, no link, no table cell, no mention."""
    line = words.clip(value, width).replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"([\\`*_>\[\]|~#])", r"\\\1", line)
    return line.replace("://", "\\://").replace("@", "@\N{ZERO WIDTH SPACE}")


def code(value: object, width: int = 160) -> str:
    """Return a name in a code span."""
    line = words.clip(value, width)
    if not line.strip():
        return words.NOT_HERE
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}"
