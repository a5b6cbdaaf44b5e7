"""What every way of measuring shares: scenarios, when enough is measured, the key of a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from mint_deploy import statistics
from mint_deploy.artifacts import Comparison, Engine, Measurement, TaskSpec, TensorSpec
from mint_deploy.errors import ConfigError, UnknownName

__all__ = ["BLOCK_S", "MOST_CALLS", "SCENARIOS", "STREAMS", "MeasuringStopped", "Progress",
           "Settings", "now", "positive", "scenario_named", "streams_of", "task_spec"]  # fmt: skip

SCENARIOS = ("single_stream", "multi_stream", "offline")
#: queries of a burst, as LoadGen has them
STREAMS = 8

#: called with what is done, the whole, and a note
Progress = Callable[[float, float, str], None]

#: a block is about this long: many turns a second, few switches a call. Shorter ones were no better
#: (benchmarks/neighbours.py), and more of their calls come right after another model's
BLOCK_S = 0.02
#: calls that a single request to a child asks for at most
MOST_CALLS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """When enough is measured, for each model of each restart.

    Warm-up ends when ``warmup_s`` AND ``warmup_count`` are reached. Measuring ends when ``min_s``
    AND ``min_count`` are reached AND half the 95 % interval of the median is at most
    ``precision`` of it, or when ``most_count`` latencies are kept: more of a call of microseconds
    tell nothing new. The time budget ends either; the result is then called not converged.
    """

    warmup_s: float = 0.1
    warmup_count: int = 5
    min_s: float = 0.5
    min_count: int = 150
    precision: float = 0.02
    most_count: int = 50_000

    def __post_init__(self) -> None:
        for name in ("warmup_s", "min_s", "precision"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("warmup_count", "min_count", "most_count"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more")

    def enough(self, samples: Sequence[int]) -> bool:
        """Whether time, count and precision are all reached."""
        return len(samples) >= self.most_count or (
            self.long_enough(samples) and statistics.median_half_width(samples) <= self.precision
        )

    def long_enough(self, samples: Sequence[int]) -> bool:
        """Whether time and count are reached."""
        if len(samples) >= self.most_count:
            return True
        return len(samples) >= self.min_count and sum(samples) >= self.min_s * 1e9


class MeasuringStopped(KeyboardInterrupt):
    """Ctrl-C after at least one whole restart: what was measured until then comes along.

    Whoever does not know it sees a KeyboardInterrupt. ``measured`` and ``compared`` are what the
    call would have returned, each with the doubt that it was interrupted.
    """

    def __init__(
        self, note: str, measured: Sequence[Measurement], compared: Sequence[Comparison] = ()
    ) -> None:
        super().__init__(note)
        self.measured, self.compared = list(measured), list(compared)


def scenario_named(name: str) -> str:
    """Return ``name`` if there is such a scenario; UnknownName names those there are."""
    if name not in SCENARIOS:
        raise UnknownName("scenario", name, SCENARIOS)
    return name


def streams_of(scenario: str, streams: int | None) -> int:
    """Return the queries of a burst: 1 but under ``multi_stream``; ConfigError if that is not so."""
    scenario_named(scenario)
    found = (STREAMS if scenario == "multi_stream" else 1) if streams is None else streams
    positive(streams=found)
    if found > 1 and scenario != "multi_stream":
        raise ConfigError(
            f"streams is {found} under {scenario}, which has one query at a time; "
            "expected scenario multi_stream"
        )
    return found


def positive(**values: float) -> None:
    """Refuse a setting that is not above zero, by its name."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}, expected a number above 0")


def now() -> str:
    """Return the time of day as a measurement records it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def task_spec(
    label: str,
    engine: Engine,
    scenario: str,
    threads: int,
    inputs: Sequence[TensorSpec],
    *,
    streams: int = 1,
    flags: Mapping[str, str] | None = None,
) -> TaskSpec:
    """Return the key of a measurement.

    Args:
        label: what the model is called.
        engine: what ran; its flags are part of the key.
        scenario: one of ``SCENARIOS``.
        threads: compute threads of a session.
        inputs: the shapes that were really fed.
        streams: queries of a burst.
        flags: what the harness itself has set.
    """
    return TaskSpec(
        label=label,
        sha256=engine.sha256,
        runtime=engine.runtime,
        precision=engine.precision,
        scenario=scenario,
        batch=inputs[0].shape[0] if inputs and inputs[0].shape else 1,
        threads=threads,
        inputs=tuple(inputs),
        flags=tuple(sorted((str(k), str(v)) for k, v in {**engine.flags, **(flags or {})}.items())),
        streams=streams,
    )
