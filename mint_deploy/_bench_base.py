"""What every way of measuring shares: scenarios, when enough is measured, the key of a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from mint_deploy import statistics
from mint_deploy.artifacts import Engine, TaskSpec, TensorSpec
from mint_deploy.errors import ConfigError, UnknownName

__all__ = ["BLOCK_S", "MOST_CALLS", "SCENARIOS", "Progress", "Settings", "now", "positive",
           "scenario_named", "task_spec"]  # fmt: skip

SCENARIOS = ("single_stream", "offline")

#: called with what is done, the whole, and a note
Progress = Callable[[float, float, str], None]

#: a block is about this long: many turns a second, few switches a call
BLOCK_S = 0.02
#: calls that a single request to a child asks for at most
MOST_CALLS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """When enough is measured, for each model of each restart.

    Warm-up ends when ``warmup_s`` AND ``warmup_count`` are reached. Measuring ends when ``min_s``
    AND ``min_count`` are reached AND half the 95 % interval of the median is at most
    ``precision`` of it. The time budget ends either; the result is then called not converged.
    """

    warmup_s: float = 0.1
    warmup_count: int = 5
    min_s: float = 0.25
    min_count: int = 150
    precision: float = 0.02

    def __post_init__(self) -> None:
        for name in ("warmup_s", "min_s", "precision"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("warmup_count", "min_count"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more")

    def enough(self, samples: Sequence[int]) -> bool:
        """Whether time, count and precision are all reached."""
        return (
            len(samples) >= self.min_count
            and sum(samples) >= self.min_s * 1e9
            and statistics.median_half_width(samples) <= self.precision
        )


def scenario_named(name: str) -> str:
    """Return ``name`` if there is such a scenario; UnknownName names those there are."""
    if name not in SCENARIOS:
        raise UnknownName("scenario", name, SCENARIOS)
    return name


def positive(**values: float) -> None:
    """Refuse a setting that is not above zero, by its name."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}, expected a number above 0")


def now() -> str:
    """Return the time of day as a measurement records it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def task_spec(
    label: str, engine: Engine, scenario: str, threads: int, inputs: Sequence[TensorSpec]
) -> TaskSpec:
    """Return the key of a measurement; ``inputs`` are the shapes that were really fed."""
    return TaskSpec(
        label=label,
        sha256=engine.sha256,
        runtime=engine.runtime,
        precision=engine.precision,
        scenario=scenario,
        batch=inputs[0].shape[0] if inputs and inputs[0].shape else 1,
        threads=threads,
        inputs=tuple(inputs),
        flags=tuple(sorted((str(k), str(v)) for k, v in engine.flags.items())),
    )
