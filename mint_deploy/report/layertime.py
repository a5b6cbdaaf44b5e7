"""Where the time goes, by our layers and by the runtime's operators: from a measurement's profile.

A runtime fuses: several nodes may belong to one of our layers, and some (adds, pools, re-ordering) to none. Times
are sums over the nodes of medians, in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mint_deploy.artifacts import LayerTime

__all__ = ["joined", "layer_name", "layers", "operators", "outside", "why"]

#: parameters that a layer may be named after
_PARAMETERS = (".weight", ".bias", ".weight_packed")
NOT_MEASURED = "no times of layers: this measurement was made without the runtime's profiler"


def layers(times: Iterable[LayerTime]) -> list[dict[str, Any]]:
    """Return ``{"name", "ns", "width", "op"}`` for each of our layers that the runtime names, in its order."""
    found: dict[str, dict[str, Any]] = {}
    for t in times:
        if t.layer is None:
            continue
        name = layer_name(t.layer)
        row = found.setdefault(name, {"name": name, "ns": 0.0, "width": t.width, "op": t.op})
        row["ns"] += t.ns
        row["width"] = t.width if row["width"] is None else row["width"]
    return list(found.values())


def layer_name(text: str) -> str:
    """Return a layer's name without the parameter's: ``layer1.0.conv1.weight`` -> ``layer1.0.conv1``."""
    return next((text.removesuffix(end) for end in _PARAMETERS if text.endswith(end)), text)


def operators(times: Iterable[LayerTime]) -> list[dict[str, Any]]:
    """Return ``{"op", "ns", "nodes", "ours"}`` for each operator, the slowest first.

    ``ours`` is the part of ``ns`` that belongs to layers of ours.
    """
    found: dict[str, dict[str, Any]] = {}
    for t in times:
        row = found.setdefault(t.op, {"op": t.op, "ns": 0.0, "nodes": 0, "ours": 0.0})
        row["ns"] += t.ns
        row["nodes"] += 1
        row["ours"] += t.ns if t.layer is not None else 0.0
    return sorted(found.values(), key=lambda row: -row["ns"])


def outside(found: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the time of :func:`operators` that belongs to none of our layers."""
    whole = sum(row["ns"] for row in found)
    return sum(row["ns"] - row["ours"] for row in found) / whole if whole else 0.0


def joined(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    cut: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return a row for each layer with its times, and its widths and MACs where they are known.

    Args:
        before: the first model's :func:`layers`.
        after: the second one's.
        cut: the layers of cut.json; they give the order and the widths. Without them the order is the runtime's.

    Returns:
        ``name before after`` (widths) ``ns_before ns_after``, with whatever else ``cut`` says of the layer; None
        where a side has no such layer or it is not known.
    """
    first, second = ({row["name"]: row for row in side} for side in (before, after))
    known = {str(layer["name"]): dict(layer) for layer in cut}
    names = list(known) if known else list(dict.fromkeys([*first, *second]))
    out = []
    for name in names:
        a, b = first.get(name), second.get(name)
        row = known.get(name) or {
            "name": name,
            "kind": (a or b or {}).get("op", ""),
            "before": a["width"] if a else None,
            "after": b["width"] if b else None,
        }
        row["ns_before"] = a["ns"] if a else None
        row["ns_after"] = b["ns"] if b else None
        out.append(row)
    return out


def why(runs: Iterable[Mapping[str, Any]]) -> str:
    """Return why there are no times of layers; "" where every run has them."""
    empty = [run for run in runs if not run["operators"]]
    if not empty:
        return ""
    return next((r["nulls"]["layers"] for r in empty if r["nulls"].get("layers")), NOT_MEASURED)
