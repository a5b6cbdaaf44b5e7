"""Who measured what, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mint_deploy.values.basic import TensorSpec

__all__ = ["Comparison", "LayerTime", "Machine", "MachineState", "Measurement", "TaskSpec"]


#: what of a record's details must agree before clock figures are compared
_SETTINGS = (
    "cpu_quota_cores",
    "frequency_min_mhz",
    "frequency_max_mhz",
    "energy_preference",
    "turbo",
    "smt",
)
_GPU_SETTINGS = ("sm_applications_mhz", "power_limit_w", "mig", "ecc")
_JETSON_SETTINGS = ("l4t", "gpu_min_mhz", "gpu_max_mhz", "tpc_pg_mask", "clocks_held")
#: packages that are recorded but have no part in a run that is timed
_NO_CLOCK = ("onnx",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Who measured: hardware, its state, and the versions that matter. ``None``: not readable here."""

    hostname: str
    system: str
    cpu: str
    cores: float
    memory_bytes: int
    python: str
    versions: Mapping[str, str]
    board: str | None = None
    gpu: str | None = None
    governor: str | None = None
    frequency_mhz: float | None = None
    load_average: float | None = None
    virtualization: str | None = None
    power_mode: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fields that must agree before two clock figures may be compared.

        What is set counts (limits, modes, versions), not what is so at the moment (clock, load,
        temperature). A record of schema 1 has fewer details: what it lacks is None, as is what a
        machine does not tell, and two such records agree there.
        """
        found = (self.details.get(name) for name in ("gpu", "jetson"))
        gpu, jetson = (part if isinstance(part, Mapping) else {} for part in found)
        return {
            "hostname": self.hostname,
            "cpu": self.cpu,
            "cores": self.cores,
            "board": self.board,
            "gpu": self.gpu,
            "governor": self.governor,
            "power_mode": self.power_mode,
            "python": self.python,
            "versions": {k: v for k, v in self.versions.items() if k not in _NO_CLOCK},
            "virtualization": self.virtualization,
            **{name: self.details.get(name) for name in _SETTINGS},
            "gpu_driver": gpu.get("driver_version"),
            **{f"gpu_{name}": gpu.get(name) for name in _GPU_SETTINGS},
            **{f"jetson_{name}": jetson.get(name) for name in _JETSON_SETTINGS},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What was measured: the hashable key under which measurements may be compared."""

    label: str
    sha256: str
    runtime: str
    precision: str
    scenario: str
    batch: int
    threads: int
    inputs: tuple[TensorSpec, ...]
    flags: tuple[tuple[str, str], ...] = ()
    streams: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What moved on the machine between two looks, at the end of it; ``None``: not readable here.

    ``steal``: share of the CPU time that the hypervisor gave to others; ``other_cpu``: cores that processes
    other than the measured ones used; ``throttled``: times that the processor slowed itself down since
    the last look; ``quota_stops``: periods in which the control group's CPU quota was used up and all
    of it had to wait.
    """

    load_average: float | None = None
    steal: float | None = None
    other_cpu: float | None = None
    frequency_mhz: float | None = None
    throttled: int | None = None
    temperature_c: float | None = None
    gpu_mhz: float | None = None
    quota_stops: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Where the time goes: one node of a runtime's graph.

    ``ns`` is the median of its calls; ``layer`` the weight's name in our graph where the node is known there;
    ``width`` its output channels.
    """

    name: str
    op: str
    ns: float
    calls: int
    layer: str | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """RAW latencies in nanoseconds, one tuple per process restart; all else is derived from them.

    A latency is that of one call; under ``multi_stream`` that of a burst of ``task.streams`` queries.
    ``figures`` are those that no clock moves, by name: ``file_bytes``, ``params``, ``macs``, ``weight_bytes``,
    ``peak_activation_bytes``. ``layers`` come from a run of its own, with the runtime's profiler on.
    ``states`` are looks at the machine, one after each restart. ``nulls`` says for each figure that is
    missing why it is missing. ``blocks`` says for each restart how many of its latencies every block has, in
    the order of time; block ``i`` of two models that took turns are neighbours. ``sequential``: restarts were
    added until an interval was good enough, so that intervals are made by :mod:`mint_deploy.stopping`.
    """

    task: TaskSpec
    machine: Machine
    restarts_ns: tuple[tuple[int, ...], ...]
    warmup_ns: tuple[int, ...]
    peak_rss_bytes: int | None
    import_rss_bytes: int | None
    load_ns: tuple[int, ...]
    converged: bool
    started: str
    partner: str | None = None
    energy_mj: float | None = None
    gpu_bytes: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[LayerTime, ...] = ()
    states: tuple[MachineState, ...] = ()
    blocks: tuple[tuple[int, ...], ...] = ()
    sequential: bool = False
    nulls: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``ratio`` = time of B / time of A from interleaved restarts, with a t interval at ``confidence``."""

    a: str
    b: str
    ratio: float
    low: float
    high: float
    confidence: float
    restarts: int
    doubts: tuple[str, ...] = ()
