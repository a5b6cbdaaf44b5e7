"""The cells of ``engines.py`` as Markdown: accuracy, size and latency in one table, calibration in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["table"]

_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_DASH = "–"


def table(
    cells: Mapping[str, Any],
    networks: Sequence[str],
    runtimes: Sequence[str],
    methods: Sequence[str],
    schemes: Sequence[str],
) -> str:
    """Return what is there: one table of the engines, one of the calibration methods, one of the schemes."""
    head = (
        "| network | runtime | precision | top-1, test | change against float32, points | file, MB "
        "| median, ms | times as fast as dense float32 | layers in float |"
    )
    rows = [head, "|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for net in networks:
        for runtime in runtimes:
            for variant in ("dense", "slim"):
                for precision in ("fp32", "int8"):
                    row = _row(cells, net, runtime, variant, precision)
                    if row:
                        rows.append(row)
    parts = ["\n".join(rows)] if len(rows) > 2 else []
    for title, kind, columns, say in (
        ("signal to noise, dB (drop, points)", "calibration", methods, _method),
        ("signal to noise, dB: exact / here", "scheme", schemes, _scheme),
    ):
        lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for net in networks:
            for variant in ("dense", "slim"):
                found = [cells.get(f"{kind}/{net}/{variant}/{c}") for c in columns]
                if any(found):
                    said = (_DASH if cell is None else say(cell) for cell in found)
                    lines.append(f"| {net}, {variant} | " + " | ".join(said) + " |")
        if len(lines) > 2:
            parts.append("\n".join(lines))
    about = [
        f"{net}: {cells[f'network/{net}']['how']}." for net in networks if f"network/{net}" in cells
    ]
    doubts = [
        f"Doubts about the times of {net} on {_NAMES.get(runtime, runtime)}: {'; '.join(found[:3])}."
        for net in networks
        for runtime in runtimes
        if (found := cells.get(f"latency/{net}/{runtime}", {}).get("doubts"))
    ]
    return "\n\n".join([*parts, *about, *doubts])


def _row(cells: Mapping[str, Any], net: str, runtime: str, variant: str, precision: str) -> str:
    right = cells.get(f"accuracy/{net}/{runtime}/{variant}")
    timed = cells.get(f"latency/{net}/{runtime}")
    made = cells.get(f"int8/{net}/{variant}")
    if right is None and timed is None:
        return ""
    top1 = change = size = floats = _DASH
    if right is not None:
        found = right[precision]
        top1 = f"{100 * found['top1']:.2f} %"
        if precision == "int8":
            low, high = -found["drop_high"], -found["drop_low"]
            change = f"{0 - found['drop']:+.2f} ({low:+.2f} to {high:+.2f})"
    if made is not None:
        size = f"{made['bytes' if precision == 'int8' else 'source_bytes'] / 1e6:.2f}"
        if precision == "int8":
            floats = f"{len(made['float_layers'])} of {made['layers']}"
    label = f"{net}, {variant}"
    ms, ratio = _latency(timed, f"{variant} {precision}")
    name = _NAMES.get(runtime, runtime)
    return f"| {label} | {name} | {precision} | {top1} | {change} | {size} | {ms} | {ratio} | {floats} |"


def _latency(cell: Mapping[str, Any] | None, label: str) -> tuple[str, str]:
    if cell is None or label not in cell["median_ms"]:
        return _DASH, _DASH
    ms = f"{cell['median_ms'][label]:.2f}"
    found = cell["ratios"].get(label)
    if found is None:
        return ms, "1"
    # the ratio is of times; its reciprocal is what people ask for
    low, high = 1 / found["high"], 1 / found["low"]
    return ms, f"{1 / found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _scheme(cell: Mapping[str, Any]) -> str:
    return f"{cell['exact_db']:.1f} / {cell['here_db']:.1f}"


def _method(cell: Mapping[str, Any]) -> str:
    return f"{cell['snr_db']:.1f} ({cell['drop']:+.2f})"
