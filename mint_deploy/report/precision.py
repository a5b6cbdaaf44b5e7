"""What lower precision cost and gave: accuracy, signal to noise, size and time, and what stays in float32.

precision(folder) -> the section of report.json     rows(section) -> a printed line a network
floats(section) -> the layers that stay float32     markdown(section) -> the block of report.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy import digits, files, stopping
from mint_deploy.artifacts import Measurement
from mint_deploy.report import words
from mint_deploy.report.folder import Folder
from mint_deploy.values.precision import Quantized

__all__ = ["floats", "markdown", "precision", "rows"]

_NAMES = {"int8": "INT8", "fp16": "FP16"}
_FLOATS = 12


def precision(folder: Folder) -> dict[str, Any] | None:
    """Return the section; without networks where every file is float32, None before the export.

    ``precision max_drop kept`` and ``networks``: a :class:`mint_deploy.values.precision.Quantized` each, as JSON,
    with its ``network``, the accuracy's ``change`` in points, and ``time``: what it takes of the float32 file's
    time where both were measured in turns (``ratio low high confidence restarts runtime``), else None.
    """
    found = folder.json("precision.json", "Precision")
    if found is None:
        fp32: dict[str, Any] = {"precision": "fp32", "max_drop": None, "kept": None, "networks": []}
        return fp32 if folder.has("deploy.json") else None
    networks = []
    for label, entry in found["networks"].items():
        made = files.decode(Quantized, entry["quantized"], where=f"precision.json: {label}")
        after = made.after
        change = None
        if after is not None and after.drop is not None:
            low, high = after.drop_high, after.drop_low
            change = {
                "points": -after.drop,
                "low": None if low is None else -low,
                "high": None if high is None else -high,
            }
        time = _time(folder.measurements()[0], label, f"{label} {found['precision']}")
        networks.append({"network": label, **files.encode(made), "change": change, "time": time})
    return {
        "precision": found["precision"],
        "max_drop": found["max_drop"],
        "kept": found["kept"],
        "networks": networks,
    }


def _time(measured: Sequence[Measurement], before: str, after: str) -> dict[str, Any] | None:
    single = {m.task.label: m for m in measured if m.task.scenario == "single_stream"}
    if not {before, after} <= set(single):
        return None
    a, b = single[before], single[after]
    if min(len(a.restarts_ns), len(b.restarts_ns)) < 2:
        return None
    found = stopping.between(a, b)
    return {
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "confidence": found.confidence,
        "restarts": found.n,
        "runtime": b.task.runtime,
    }


def rows(section: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return printed figures a network: ``label scheme before after change span snr size time floats verdict``."""
    return [_row(network, section["precision"]) for network in section.get("networks", [])]


def _row(network: Mapping[str, Any], precision_: str) -> dict[str, str]:
    before, after, change = network["before"], network["after"], network["change"]
    places = words.accuracy_places((a["low"], a["high"]) for a in (before, after) if a is not None)
    snr = min(network["snr_db"].values(), default=None)
    share = network["float_macs"]
    floats_ = f"{len(network['float_layers'])} of {network['layers']}"
    if share:
        floats_ += f", {words.percent(share, 0)} of the multiply-adds"
    said, span = ("", "") if change is None else _change(change)
    return {
        "label": f"{network['network']}, {_NAMES.get(precision_, precision_)}",
        "scheme": network["scheme"],
        "before": words.NOT_HERE if before is None else words.percent(before["top1"], places),
        "after": words.NOT_HERE if after is None else words.percent(after["top1"], places),
        "change": said or words.NOT_HERE,
        "span": span,
        "snr": words.NOT_HERE if snr is None else f"{words.fixed(snr, 1)} dB",
        "size": f"{words.bytes_(network['source_bytes'])} to {words.bytes_(network['bytes'])}",
        "time": _factor(network.get("time")),
        "floats": floats_,
        "verdict": network["verdict"],
    }


def _factor(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return words.NOT_HERE
    return digits.figure(time["ratio"], time["low"], time["high"])


def _change(change: Mapping[str, Any]) -> tuple[str, str]:
    said = f"{words.fixed(change['points'], 2)} points"
    if change["low"] is None or change["high"] is None:
        return said, ""
    return said, f"{words.fixed(change['low'], 2)} to {words.fixed(change['high'], 2)}"


def floats(section: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return network, layer and why, of each layer that stays float32."""
    return [
        (network["network"], layer["name"], layer["reason"])
        for network in section.get("networks", [])
        for layer in network["float_layers"]
    ]


def markdown(section: Mapping[str, Any], escape: Any, code: Any) -> str:
    """Return the block of report.md; empty where there is nothing to say.

    Args:
        section: of report.json.
        escape: makes text safe for Markdown.
        code: makes a code span of a name.
    """
    made = rows(section)
    if not made:
        return ""
    head = (
        "",
        "float32",
        _NAMES.get(section["precision"], ""),
        "change",
        "signal to noise",
        "size",
        "time, of float32's",
        "in float32",
    )
    table = [
        (
            escape(r["label"]),
            r["before"],
            r["after"],
            f"{r['change']} ({r['span']})" if r["span"] else r["change"],
            r["snr"],
            r["size"],
            r["time"],
            r["floats"],
        )
        for r in made
    ]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, table)]
    stay = floats(section)
    said = [
        f"- {code(name)} of the {network} network: {escape(why)}" for network, name, why in stay
    ]
    more = [f"- and {len(stay) - _FLOATS} more"] if len(stay) > _FLOATS else []
    verdicts = [f"{escape(r['label'])}: {escape(r['verdict'])}." for r in made if r["verdict"]]
    blocks = ["### Precision", "\n".join(lines), *verdicts]
    if said:
        blocks += ["Layers that stay in float32:", "\n".join([*said[:_FLOATS], *more])]
    return "\n\n".join(blocks)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
