"""The JSON files that ``trtexec`` exports, read: times of every query, of every layer, and layers.

    --exportTimes      [{"startEnqMs": .., "computeMs": .., "latencyMs": ..}, ...]   warm-up left out
    --exportProfile    [{"count": N}, {"name": .., "timeMs": .., "averageMs": .., "medianMs": ..}, ...]
    --exportLayerInfo  {"Layers": [...], "Bindings": [...]}, which the Python API's inspector writes too

Forms: sampleReporting.cpp (exportJSONTrace, exportJSONProfile) and the developer guide, of 8.5 to
11; a layer is an object where the engine was built with detailed verbosity, else its name alone.
Standard library only: this file travels to the board.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_deploy.artifacts import LayerTime
from mint_deploy.errors import DataError

__all__ = ["Layer", "Times", "layer_times", "layers", "read_layers", "read_profile", "read_times"]

#: what 8.6 and later say about a layer's origin: "[ONNX Layer: a]\x1e[ONNX Layer: b]"
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Every query's nanoseconds: on the GPU, and from host to host (without transfers the same)."""

    compute_ns: tuple[int, ...]
    latency_ns: tuple[int, ...]
    enqueue_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of the engine: what the builder made of one or several nodes.

    ``origins`` are the ONNX nodes that it stands for, ``width`` its output channels where it has
    weights, ``form`` the data type and layout of its first output.
    """

    name: str
    kind: str = ""
    origins: tuple[str, ...] = ()
    tactic: str = ""
    form: str = ""
    width: int | None = None


def read_times(path: str | os.PathLike[str]) -> Times:
    """Read what ``--exportTimes`` wrote.

    Raises:
        DataError: missing, damaged, without a query, or a time that is none.
    """
    rows = _rows(path, "a list of queries")
    out: dict[str, list[int]] = {"computeMs": [], "latencyMs": [], "enqueue": []}
    for row in rows:
        enqueue = _ms(row, "endEnqMs", path) - _ms(row, "startEnqMs", path)
        for key, ms in (
            ("computeMs", _ms(row, "computeMs", path)),
            ("latencyMs", _ms(row, "latencyMs", path)),
            ("enqueue", enqueue),
        ):
            if ms < 0:
                raise DataError(f"{path}: a query has {key} {ms} ms; measure anew")
            out[key].append(round(ms * 1e6))
    if not rows:
        raise DataError(f"{path} holds no query: the engine did not run; measure longer")
    return Times(
        compute_ns=tuple(out["computeMs"]),
        latency_ns=tuple(out["latencyMs"]),
        enqueue_ns=tuple(out["enqueue"]),
    )


def read_profile(path: str | os.PathLike[str]) -> tuple[LayerTime, ...]:
    """Read what ``--exportProfile`` wrote: the median time of every layer, in the engine's order.

    8.4 and older wrote no medians; the average stands in for them.

    Raises:
        DataError: missing, damaged, or of another form.
    """
    rows = _rows(path, "a list of layers")
    if not rows or "count" not in rows[0]:
        raise DataError(f'{path}: expected {{"count": ...}} at its head; profile anew')
    calls = int(_ms(rows[0], "count", path))
    return tuple(
        LayerTime(
            name=str(row.get("name", "")),
            op="",
            ns=_ms(row, "medianMs" if "medianMs" in row else "averageMs", path) * 1e6,
            calls=calls,
        )
        for row in rows[1:]
    )


def read_layers(path: str | os.PathLike[str]) -> tuple[Layer, ...]:
    """Read what ``--exportLayerInfo`` wrote; DataError where it is missing or of another form."""
    return layers(_text(path), where=str(path))


def layers(text: str, *, where: str = "the engine's inspector") -> tuple[Layer, ...]:
    """Read the layers of an engine from their JSON text; see :func:`read_layers`."""
    body = _parsed(text, where)
    listed = body.get("Layers") if isinstance(body, dict) else None
    if not isinstance(listed, list):
        raise DataError(f'{where}: expected {{"Layers": [...]}}; build with detailed verbosity')
    return tuple(_layer(entry, where) for entry in listed)


def layer_times(
    profile: Sequence[LayerTime], known: Sequence[Layer], ours: Mapping[str, str] | None = None
) -> tuple[LayerTime, ...]:
    """Put the kind, the origin and the width of each layer to its time.

    Args:
        profile: from :func:`read_profile`.
        known: from :func:`layers`; the two meet by the layer's name.
        ours: ONNX node -> name of the layer in our graph; None: the node's own name.
    """
    by_name = {layer.name: layer for layer in known}
    out = []
    for row in profile:
        layer = by_name.get(row.name, Layer(name=row.name))
        origins = [(ours or {}).get(o, None if ours else o) for o in layer.origins]
        out.append(
            LayerTime(
                name=row.name,
                op=layer.kind or _kind_of(row.name),
                ns=row.ns,
                calls=row.calls,
                layer=next((o for o in origins if o), None),
                width=layer.width,
            )
        )
    return tuple(out)


# ---------------------------------------------------------------- one entry


def _layer(entry: Any, where: str) -> Layer:
    if isinstance(entry, str):
        return Layer(name=entry, kind=_kind_of(entry), origins=_names_in(entry))
    if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
        raise DataError(f"{where}: a layer without a name; build anew")
    name = entry["Name"]
    origins = tuple(_ORIGIN.findall(str(entry.get("Metadata", "")))) or _names_in(name)
    outputs = entry.get("Outputs")
    first = outputs[0] if isinstance(outputs, list) and outputs else {}
    width = entry.get("OutMaps")
    return Layer(
        name=name,
        kind=str(entry.get("ParameterType") or entry.get("LayerType") or _kind_of(name)),
        origins=origins,
        tactic=str(entry.get("TacticName", "")),
        form=str(first.get("Format/Datatype", "")) if isinstance(first, dict) else "",
        width=width if isinstance(width, int) and not isinstance(width, bool) else None,
    )


def _names_in(name: str) -> tuple[str, ...]:
    """The nodes that a fused layer's name lists: ``a + b``; a copy or a pointwise kernel has none."""
    if name.startswith(("Reformatting CopyNode", "{ForeignNode", "PWN(")):
        return ()
    return tuple(part for part in name.split(" + ") if not part.startswith("(Unnamed Layer"))


def _kind_of(name: str) -> str:
    for start, kind in (("Reformatting CopyNode", "Reformat"), ("{ForeignNode", "ForeignNode"),
                        ("PWN(", "PointWise")):  # fmt: skip
        if name.startswith(start):
            return kind
    return ""


def _ms(row: Mapping[str, Any], key: str, path: str | os.PathLike[str]) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{path}: expected a number under '{key}', found {value!r}")
    return float(value)


def _rows(path: str | os.PathLike[str], what: str) -> list[dict[str, Any]]:
    body = _parsed(_text(path), str(path))
    if not isinstance(body, list) or not all(isinstance(row, dict) for row in body):
        raise DataError(f"{path}: expected {what}; was trtexec ended early?")
    return body


def _text(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _parsed(text: str, where: str) -> Any:
    """JSON; the names of layers are not escaped by ``trtexec``, so control characters may stand."""
    try:
        return json.loads(text, strict=False)
    except ValueError as error:
        raise DataError(
            f"{where} is damaged or not JSON ({error}); was trtexec ended early?"
        ) from error
