"""The verdict as one JSON object, for scripts: ``mint_deploy/schemas/verdict.json`` is its JSON Schema.

Figures of clocks are rounded by their interval; counts (bytes, parameters, MACs) are whole.
"""

from __future__ import annotations

import json
from typing import Any

from mint_deploy import artifacts, files
from mint_deploy._version import __version__
from mint_deploy.artifacts import Measurement
from mint_deploy.compare import Check
from mint_deploy.limits import GAUGES
from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._figures import figures, rounded, significant

__all__ = ["body", "text"]


def text(judged: Judged) -> str:
    """Return the object, indented."""
    return json.dumps(body(judged), indent=1, allow_nan=False) + "\n"


def body(judged: Judged) -> dict[str, Any]:
    """Return the object."""
    verdict = judged.verdict
    return {
        "kind": "Verdict",
        "schema": artifacts.SCHEMA,
        "written_by": f"mint-deploy {__version__}",
        "state": verdict.state,
        "strict": judged.strict,
        "exit_code": verdict.exit_code(strict=judged.strict),
        "baseline": judged.baseline,
        "now": judged.now,
        "checks": [_check(check) for check in verdict.checks],
        "pairs": [
            {"subject": pair.name, "interleaved": pair.interleaved,
             "baseline": _measured(pair.baseline), "now": _measured(pair.now)}
            for pair in verdict.pairs
        ],
        "notes": list(verdict.notes),
        "doubts": list(verdict.doubts),
    }  # fmt: skip


def _check(check: Check) -> dict[str, Any]:
    """A check with the digits that its interval supports."""
    out: dict[str, Any] = files.encode(check)
    if check.low is not None and check.high is not None and check.now is not None:
        out["now"], out["low"], out["high"] = rounded(check.now, check.low, check.high)
        if check.baseline is not None:
            out["baseline"] = rounded(check.baseline, check.low, check.high)[0]
    elif check.unit != "bytes" and check.name in GAUGES and GAUGES[check.name].clock:
        for name in ("baseline", "now"):
            out[name] = None if out[name] is None else significant(out[name])
    for name in ("baseline", "now"):
        if isinstance(out[name], float) and out[name].is_integer():
            out[name] = int(out[name])
    return out


def _measured(m: Measurement) -> dict[str, Any]:
    return {
        "task": files.encode(m.task),
        "started": m.started,
        "restarts": len(m.restarts_ns),
        "samples": sum(map(len, m.restarts_ns)),
        "converged": m.converged,
        "machine": files.encode(m.machine.fingerprint()),
        "figures": {
            f.name: {"value": f.value, "low": f.low, "high": f.high, "unit": f.unit,
                     "reason": f.reason or None}
            for f in figures(m)
        },
        "doubts": list(m.doubts),
    }  # fmt: skip
