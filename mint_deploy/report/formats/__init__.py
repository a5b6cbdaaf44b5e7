"""A verdict in the formats that continuous integration reads; a name on the command line is a file here.

    judged = Judged(verdict=compare(a, b, limits), baseline="base.jsonl", now="now.jsonl")
    text = render("junit", judged)

A format is a module with ``text(judged) -> str``: a pure function of what was judged, so that equal
measurements give equal files. Needs neither torch nor a network.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from json import loads  # the module's own name is a format here
from pathlib import Path
from typing import Any, cast

from mint_deploy.compare import Check, State, Verdict
from mint_deploy.errors import UnknownName

__all__ = ["SCHEMAS", "Judged", "known", "render", "schema"]

#: where the JSON Schema files (2020-12) of our own formats lie
SCHEMAS = Path(__file__).parents[2] / "schemas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A verdict, what was given as ``baseline`` and ``now``, and whether inconclusive is an error."""

    verdict: Verdict
    baseline: str
    now: str
    strict: bool = False

    def outcome(self, check: Check) -> State:
        """``pass``, ``fail`` or ``inconclusive``: what a check means for the job; ``strict`` forgives nothing."""
        return "fail" if self.strict and check.state == "inconclusive" else check.state


def known() -> list[str]:
    """Return the names of the formats, as the command line spells them."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def render(name: str, judged: Judged) -> str:
    """Return what was judged as text in the format ``name``, with a line end at its end.

    Raises:
        UnknownName: no such format; the nearest is suggested.
    """
    if name not in known():
        raise UnknownName("format", name, known())
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast(str, module.text(judged))


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of ``measurement`` (a line of measurements.jsonl), ``comparisons`` or ``verdict``.

    Raises:
        UnknownName: no such schema.
    """
    names = sorted(path.stem for path in SCHEMAS.glob("*.json"))
    if name not in names:
        raise UnknownName("schema", name, names)
    found = loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return cast(dict[str, Any], found)
