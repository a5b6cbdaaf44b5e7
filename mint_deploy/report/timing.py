"""The measured side of a run folder: its measurements, its machines, and a prediction beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy import files
from mint_deploy.artifacts import Comparison, Measurement
from mint_deploy.report import measured
from mint_deploy.report.folder import Folder

__all__ = ["PREDICTED", "latency", "machines", "predicted", "who_measured"]

PREDICTED = "predicted, not measured"


def latency(folder: Folder) -> dict[str, Any] | None:
    """Return the section of the bench: ratios first, then each network's own figures."""
    found, unreadable = folder.measurements()
    compared = folder.json("comparison.json", "Comparisons")
    if not found and compared is None:
        return None
    comparisons = [
        files.decode(Comparison, c, where="comparison.json")
        for c in (compared or {}).get("comparisons", [])
    ]
    return measured.section(found, comparisons, unreadable)


def machines(folder: Folder) -> dict[str, Any] | None:
    """Return each machine that measured, once, with why a figure of it is missing."""
    return who_measured(folder.measurements()[0])


def who_measured(found: Sequence[Measurement]) -> dict[str, Any] | None:
    """Return the machines of these measurements, each once; None where there is none."""
    seen: list[dict[str, Any]] = []
    for measurement in found:
        body = files.encode(measurement.machine)
        key = measurement.machine.fingerprint()
        if all(other["key"] != key for other in seen):
            seen.append({"key": key, "body": body})
    return {"machines": [m["body"] for m in seen]} if seen else None


def predicted(folder: Folder) -> dict[str, Any] | None:
    """Return the figures for a board that is not here, each beside the one measured here.

    predicted.json (:mod:`mint_deploy.predict`) holds ``board`` and ``figures``, a list of ``{key,
    label, value, unit, basis, reason}``, with ``low`` and ``high`` where known; ``key``
    (``latency_ratio``, ``dense_latency_ms``, ``slim_latency_ms``) finds its measured partner.
    Ratios come first.
    """
    body = folder.json("predicted.json", "Prediction")
    if body is None:
        return None
    partners = _measured(latency(folder))
    board = body.get("description") or body.get("board") or "the board"
    figures = [_predicted(dict(f), body.get("basis"), partners) for f in body["figures"]]
    return {
        "origin": PREDICTED,
        "board": f"{board}, {body['power_mode']}" if body.get("power_mode") else board,
        "basis": body.get("basis"),
        "sources": dict(body.get("sources") or {}),
        "figures": sorted(figures, key=lambda f: not str(f["key"]).endswith("ratio")),
    }


def _predicted(
    figure: Mapping[str, Any], basis: str | None, partners: Mapping[str, Any]
) -> dict[str, Any]:
    names = ("key", "value", "low", "high", "reason")
    key = str(figure.get("key"))
    return {
        **{name: figure.get(name) for name in names},
        "label": figure.get("label") or key.replace("_", " "),
        "unit": figure.get("unit") or "",
        "basis": None if figure.get("basis") == basis else figure.get("basis"),
        "measured": partners.get(key),
    }


def _measured(section: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return this machine's figures under the keys that a prediction may use."""
    out: dict[str, dict[str, Any]] = {}
    if section is None:
        return out
    if section["ratio"] is not None:
        r = section["ratio"]
        out["latency_ratio"] = {
            "value": r["ratio"],
            "low": r["low"],
            "high": r["high"],
            "unit": "×",
        }
    for run in section["runs"]:
        key, span = f"{run['label']}_latency_ms", run["interval"]
        if run["scenario"] == "single_stream" and span["centre"] and key not in out:
            names = (("value", "centre"), ("low", "low"), ("high", "high"))
            ends = {to: None if span[k] is None else span[k] / 1e6 for to, k in names}
            out[key] = {**ends, "unit": "ms"}
    return out
