"""Times for a board that is not here, from its table of figures: predicted, not measured.

The model is a roofline. A layer takes the longer of two times: its arithmetic at the board's peak
rate, or its weights and activations once through memory at the board's bandwidth. Layers follow
each other. What is left out (kernel launches, clocks that sink, widths that do not fit) only adds
time, so each time is a lower bound, and small layers are underestimated most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mint_deploy.errors import TargetError
from mint_deploy.target import Target

__all__ = ["LABEL", "predict"]

LABEL = "predicted, not measured"
BASIS = (
    "roofline: per layer the longer of arithmetic at the peak rate and memory traffic at the full "
    "bandwidth; no launch overhead is modelled, so each time is a lower bound"
)
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}

Layers = Iterable[Mapping[str, Any]]


def predict(target: Target, dense: Layers, slim: Layers | None = None) -> dict[str, Any]:
    """Return the body of predicted.json (kind ``Prediction``).

    Args:
        target: its ``fp16_tflops`` (or ``int8_tops``, or cores and clock for fp32) and
            ``memory_gb_per_s``, in its power mode.
        dense: the layers before, ``{name, macs, weight_elements, activation_elements}`` for one
            sample; activations are those read plus those written.
        slim: the layers after.

    Returns:
        ``label``, ``basis``, ``board``, ``power_mode``, ``precision``, ``batch``, ``sources``,
        ``networks`` (``{dense, slim}``: milliseconds, the part of each limit, layers under each)
        and ``figures``, a list of ``{key, label, value, unit, basis, reason}`` with the keys
        ``dense_latency_ms``, ``slim_latency_ms`` and ``latency_ratio`` (slim's time / dense's).

    Raises:
        TargetError: the target lacks a figure that is needed; it is named.
    """
    rate, rate_from = _rate(target)
    bandwidth = _figure(target, "memory_gb_per_s")
    networks = {"dense": _network(dense, target, rate, bandwidth)}
    if slim is not None:
        networks["slim"] = _network(slim, target, rate, bandwidth)
    figures = [
        {
            "key": f"{name}_latency_ms",
            "label": f"latency of the {name} network, at least",
            "value": body["ms"],
            "unit": "ms",
            "basis": BASIS,
            "reason": None,
        }
        for name, body in networks.items()
    ]
    if slim is not None:
        before, after = networks["dense"]["ms"], networks["slim"]["ms"]
        figures.append(
            {
                "key": "latency_ratio",
                "label": "slim's time / dense's time",
                "value": after / before if before else None,
                "unit": "×",
                "basis": "ratio of two lower bounds: itself no bound",
                "reason": None if before else "the dense network has no layers with weights",
            }
        )
    return {
        "label": LABEL,
        "basis": BASIS,
        "board": target.name,
        "description": target.description,
        "power_mode": target.power_mode,
        "precision": target.precision,
        "batch": target.batch,
        "peak_tera_operations_per_s": rate / 1e12,
        "memory_gb_per_s": bandwidth,
        "sources": {
            key: target.source(key) or "not given in the target"
            for key in (*rate_from, "memory_gb_per_s")
        },
        "networks": networks,
        "figures": figures,
    }


def _figure(target: Target, key: str) -> float:
    value = getattr(target, key)
    if value is None:
        mode = f" in power mode {target.power_mode}" if target.power_mode else ""
        modes = [m for m, table in target.power_modes.items() if key in table]
        known = f"it is known for {', '.join(modes)}" if modes else f"add {key} to a target file"
        raise TargetError(
            f"target '{target.name}' has no {key}{mode}, so no time can be predicted; {known}"
        )
    return float(value)


def _rate(target: Target) -> tuple[float, tuple[str, ...]]:
    """Return the peak rate in operations per second (a MAC is two), and the fields it is from."""
    if target.precision == "fp16":
        return _figure(target, "fp16_tflops") * 1e12, ("fp16_tflops",)
    if target.precision == "int8":
        return _figure(target, "int8_tops") * 1e12, ("int8_tops",)
    cores, clock = _figure(target, "cuda_cores"), _figure(target, "gpu_mhz")
    return cores * clock * 1e6 * 2, ("cuda_cores", "gpu_mhz")


def _network(layers: Layers, target: Target, rate: float, bandwidth: float) -> dict[str, Any]:
    width = _BYTES[target.precision]
    arithmetic_s = memory_s = total_s = 0.0
    bound = {"arithmetic": 0, "memory": 0}
    for layer in layers:
        work = 2 * layer["macs"] * target.batch / rate
        elements = layer["weight_elements"] + layer["activation_elements"] * target.batch
        traffic = elements * width / (bandwidth * 1e9)
        bound["arithmetic" if work >= traffic else "memory"] += 1
        arithmetic_s, memory_s = arithmetic_s + work, memory_s + traffic
        total_s += max(work, traffic)
    return {
        "ms": total_s * 1e3,
        "arithmetic_ms": arithmetic_s * 1e3,
        "memory_ms": memory_s * 1e3,
        "layers_bound_by": bound,
    }
