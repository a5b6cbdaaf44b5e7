"""What a limit may hold: the figures by name, their units, and the limit itself.

A clock figure is judged between equal machines only; a deterministic one (bytes, parameters, MACs)
on any. Those that a clock gives for every process restart (latency, percentiles, throughput) are
judged by their interval, the others by their value. Standard library and numpy only: this file
travels to the board.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mint_deploy import statistics
from mint_deploy.artifacts import Measurement
from mint_deploy.errors import ConfigError

__all__ = ["GAUGES", "Gauge", "Limit", "centre", "parse_limit", "per_restart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A figure that a limit may hold.

    ``clock``: it belongs to the machine that measured it; ``larger``: more is better, so that its
    limit is a least; ``key``: where it stands in ``Measurement.figures``; ``field``: or which field
    of the measurement it is, where ``nulls`` says why it is missing.
    """

    unit: str
    clock: bool = False
    larger: bool = False
    key: str = ""
    field: str = ""


#: name of a limit -> the figure that it holds
GAUGES = {
    "latency": Gauge(unit="ns", clock=True),
    "p90": Gauge(unit="ns", clock=True),
    "p95": Gauge(unit="ns", clock=True),
    "p99": Gauge(unit="ns", clock=True),
    "throughput": Gauge(unit="samples/s", clock=True, larger=True),
    "memory": Gauge(unit="bytes", clock=True, field="peak_rss_bytes"),
    "gpu memory": Gauge(unit="bytes", clock=True, field="gpu_bytes"),
    "energy": Gauge(unit="mJ", clock=True, field="energy_mj"),
    "size": Gauge(unit="bytes", key="file_bytes"),
    "params": Gauge(unit="", key="params"),
    "macs": Gauge(unit="", key="macs"),
    "weights": Gauge(unit="bytes", key="weight_bytes"),
    "activations": Gauge(unit="bytes", key="peak_activation_bytes"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far from the baseline a figure may be: ``0.05`` relative is ``+5%``."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value * 100:+g}%" if self.relative else f"{self.value:+g}"

    def edge(self, baseline: float) -> float:
        """Return the last value that is still allowed."""
        return baseline * (1 + self.value) if self.relative else baseline + self.value

    def holds(self, baseline: float, now: float, *, larger: bool = False) -> bool:
        """Whether ``now`` keeps it; ``larger``: more is better, so the edge is the least.

        Equality is kept, whatever the last bit of ``1000 * 1.007`` is.
        """
        edge = self.edge(baseline)
        return math.isclose(now, edge, rel_tol=1e-12) or (now > edge if larger else now < edge)


def parse_limit(text: str) -> Limit:
    """Read ``+5%``, ``5%``, ``-10%`` (it must have improved) or ``+3`` (in the figure's own unit).

    Raises:
        ConfigError: anything else, or -100 % and less.
    """
    found = re.fullmatch(r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", text)
    if not found or not math.isfinite(float(found[1])) or (found[2] and float(found[1]) <= -100):
        raise ConfigError(f"limit {text!r} cannot be read; expected something like +5% or +3")
    value = float(found[1])
    return Limit(value=value / 100 if found[2] else value, relative=bool(found[2]))


def per_restart(m: Measurement, name: str) -> tuple[list[float], str]:
    """Return a figure of every restart, or no figure and the reason.

    Args:
        m: whose raw latencies are looked at.
        name: ``latency`` (the median, ns), ``p90``, ``p95``, ``p99`` (ns; every restart must have
            the samples for it) or ``throughput`` (samples a second).
    """
    restarts = [ns for ns in m.restarts_ns if ns]
    if not restarts:
        return [], f"'{m.task.label}' is a measurement without a latency"
    out: list[float] = []
    for ns in restarts:
        if name == "throughput":
            value = m.task.batch * m.task.streams * len(ns) / max(sum(ns), 1) * 1e9
        elif name == "latency":
            value = statistics.median(ns)
        else:
            found = statistics.percentile(ns, float(name[1:]))
            if found.value is None:
                return [], f"a restart of '{m.task.label}' has {found.reason}"
            value = found.value
        out.append(value)
    if min(out) <= 0:
        return [], f"a {name} of zero for '{m.task.label}': the clock is too coarse for this model"
    return out, ""


def centre(values: list[float]) -> float:
    """Return the geometric mean of a figure's restarts: what their ratio's interval lies around."""
    return math.exp(math.fsum(math.log(v) for v in values) / len(values))
