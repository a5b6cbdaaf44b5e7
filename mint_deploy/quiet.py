"""How quiet this machine is: a fixed piece of work, done evenly or not, and what disturbs it.

In each block two fresh processes do the same piece of work in turns (A B B A ...), as a comparison
of two models does. Their pieces show how far the machine slows a run down; the logarithm of the
ratio of their medians, which would be 0 on a quiet machine, shows what a comparison would see of
two equal models. From its spread over the blocks follows the smallest difference that can be told
here (:func:`smallest_difference`). Beside it: looks at the machine, and who used the CPU.
Standard library and numpy.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mint_deploy import _quiet_advice, statistics
from mint_deploy._processes import Census, Process
from mint_deploy._quiet_advice import Advice
from mint_deploy._quiet_block import Block
from mint_deploy.artifacts import Machine, MachineState
from mint_deploy.bench import overhead_ns
from mint_deploy.doubts import doubts
from mint_deploy.errors import MintDeployError
from mint_deploy.looks import Watch
from mint_deploy.machine import probe

__all__ = ["Difference", "Quiet", "Slowdown", "Timer", "observe", "smallest_difference"]

#: called with seconds done, seconds in all, and a note
Progress = Callable[[float, float, str], None]

#: a block about so long: in ten seconds enough of them for a spread
_BLOCK_S = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How much longer a run took than the fastest: 0.05 is five percent."""

    median: float
    p95: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The smallest difference that ``restarts`` restarts in ``seconds`` show nine times in ten.

    ``value`` is a share of the latency (0.01: one percent); between ``low`` and ``high`` it lies at
    90 % confidence, as the spread itself is known from a few blocks only.
    """

    value: float
    low: float
    high: float
    seconds: float
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """The clock of all latencies: what it claims to resolve, the steps seen, what a reading costs."""

    name: str
    resolution_ns: float
    step_ns: int
    reading_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """What ten seconds showed; ``nulls`` says for each field that is None why it is.

    ``piece_ns`` is the fastest run of the piece of work, ``blocks_ns`` the median of each block,
    ``log_ratios`` one a block; ``spread`` is the interquartile range over the median; ``unseen_cpu``
    are cores used by processes that have no name here; ``frequency_mhz`` lowest and highest clock.
    """

    machine: Machine
    seconds: float
    interrupted: bool
    runs: int
    piece_ns: int | None
    blocks_ns: tuple[float, ...]
    log_ratios: tuple[float, ...]
    slowdown: Slowdown | None
    spread: float | None
    difference: Difference | None
    steal: float | None
    other_cpu: float | None
    unseen_cpu: float | None
    processes: tuple[Process, ...]
    frequency_mhz: tuple[float, float] | None
    throttled: int | None
    quota_stops: int | None
    timer: Timer
    overhead_ns: float
    states: tuple[MachineState, ...]
    nulls: dict[str, str]
    doubts: tuple[str, ...]
    advice: tuple[Advice, ...]


def observe(
    seconds: float = 10.0,
    *,
    root: str | os.PathLike[str] = "/",
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> Quiet:
    """Watch the machine for about ``seconds`` while it does the same work over and over.

    Ctrl-C ends it early; what was seen until then is returned, marked ``interrupted``.

    Args:
        seconds: how long; eight blocks in ten seconds.
        root: where /proc and /sys are looked at (tests move it).
        machine: the record; probed where absent.
        progress: called with seconds done, seconds in all, and a note.

    Raises:
        MintDeployError: a process that does the work died or fell silent.
    """
    if not (seconds > 0 and math.isfinite(seconds)):
        raise MintDeployError(f"seconds is {seconds}, expected a number above 0, such as 10")
    begin = time.monotonic()
    machine = machine or probe(root)
    clock, overhead = _timer(), overhead_ns()
    watch, census = Watch(root), Census(root)
    blocks: list[Block] = []
    states: list[MachineState] = []
    products, interrupted = None, False
    count = max(round(seconds / _BLOCK_S), 2)

    def tell() -> None:
        if progress:
            passed = min(time.monotonic() - begin, seconds)
            progress(passed, seconds, f"block {len(blocks)} of {count}")

    try:
        for n in range(count):
            end = begin + seconds * (n + 1) / count
            blocks.append(Block())
            tell()
            products = blocks[-1].run(products, end, watch, tell)
            states.append(watch.look())
            census.count()
    except KeyboardInterrupt:
        interrupted = True
        states.append(watch.look())
        census.count()
    return _summary(
        machine, blocks, states, census.found(), clock, overhead,
        seconds=time.monotonic() - begin, interrupted=interrupted, no_look=watch.nulls,
    )  # fmt: skip


def _summary(
    machine: Machine,
    blocks: Sequence[Block],
    states: Sequence[MachineState],
    processes: tuple[Process, ...],
    timer: Timer,
    overhead: float,
    *,
    seconds: float,
    interrupted: bool,
    no_look: dict[str, str],
) -> Quiet:
    done = [block for block in blocks if block.done]
    runs = np.array([v for block in blocks for side in block.ns for v in side], dtype=np.float64)
    ratios = tuple(statistics.log_ratios([b.ns[0] for b in done], [b.ns[1] for b in done]))
    nulls = dict(no_look)
    slowdown = None
    if runs.size:
        fast = float(runs.min())
        middle, high = (float(v) for v in np.percentile(runs, [50, 95]))
        worst = float(runs.max())
        slowdown = Slowdown(median=middle / fast - 1, p95=high / fast - 1, worst=worst / fast - 1)
    else:
        nulls["piece_ns"] = nulls["slowdown"] = nulls["spread"] = "it ended before the first run"
    difference = None
    if len(ratios) > 2:
        difference = smallest_difference(ratios, seconds / len(done))
    else:
        nulls["difference"] = f"{len(ratios)} whole blocks; a spread needs at least 3"
    clocks = [v for block in blocks for v in block.mhz]
    steal, other = (_mean([getattr(s, name) for s in states]) for name in ("steal", "other_cpu"))
    named = sum(p.cores for p in processes)
    unseen = None if other is None else max(other - named, 0.0)
    throttled, stops = (_sum([getattr(s, n) for s in states]) for n in ("throttled", "quota_stops"))
    latencies = [[int(v) for side in block.ns for v in side] for block in done]
    advice = _quiet_advice.advise(
        machine, steal=steal, other_cpu=other, unseen_cpu=unseen, processes=processes,
        throttled=throttled, quota_stops=stops, seconds=seconds, spread=_spread(runs),
    )  # fmt: skip
    return Quiet(
        machine=machine,
        seconds=seconds,
        interrupted=interrupted,
        runs=int(runs.size),
        piece_ns=int(runs.min()) if runs.size else None,
        blocks_ns=tuple(statistics.median(ns) for ns in latencies if ns),
        log_ratios=ratios,
        slowdown=slowdown,
        spread=_spread(runs),
        difference=difference,
        steal=steal,
        other_cpu=other,
        unseen_cpu=unseen,
        processes=processes,
        frequency_mhz=(min(clocks), max(clocks)) if clocks else None,
        throttled=throttled,
        quota_stops=stops,
        timer=timer,
        overhead_ns=overhead,
        states=tuple(states),
        nulls=nulls,
        doubts=doubts((), machine, states=states),
        advice=advice,
    )


def smallest_difference(
    log_ratios: Sequence[float], block_s: float, seconds: float = 60.0
) -> Difference:
    """Return what a comparison of ``seconds`` would just see, from ``[blocks]`` ratios of equals.

    The comparison is thought of as so many blocks as fit, each giving one log-ratio with the spread
    seen here. Its 95 % t interval leaves out 1 in nine cases of ten where the true ratio is
    ``exp((t_0.975 + t_0.9) * spread / sqrt(blocks))``.

    Args:
        log_ratios: three or more.
        block_s: seconds of one block, with the start of its processes.
        seconds: of the comparison.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    spread, df = float(values.std(ddof=1)), len(values) - 1
    restarts = max(int(seconds / block_s), 2)
    reach = (
        statistics.t_quantile(0.975, restarts - 1) + statistics.t_quantile(0.9, restarts - 1)
    ) / math.sqrt(restarts)
    low, high = (spread * math.sqrt(df / _chi2(p, df)) for p in (0.95, 0.05))
    value, low, high = (math.expm1(reach * s) for s in (spread, low, high))
    return Difference(value=value, low=low, high=high, seconds=seconds, restarts=restarts)


def _chi2(p: float, df: int) -> float:
    """The quantile of chi-squared: halving on the series of the incomplete gamma function."""
    half = df / 2

    def below(x: float) -> float:
        term = total = 1.0
        n = 0
        while term > 1e-16 * total:
            n += 1
            term *= x / (half + n)
            total += term
        return total * math.exp(half * math.log(x) - x - math.lgamma(half + 1))

    low, high = 0.0, float(df)
    while below(high) < p:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return low + high


def _spread(runs: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    return statistics.spread(runs) if runs.size else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _sum(values: Sequence[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _timer() -> Timer:
    """The clock itself: its name, its steps, what a reading costs."""
    clock, info = time.perf_counter_ns, time.get_clock_info("perf_counter")
    rounds = []
    for _ in range(7):
        begin = clock()
        for _ in range(2000):
            clock()
        rounds.append((clock() - begin) / 2000)
    seen = [clock() for _ in range(5000)]
    steps = [late - early for early, late in itertools.pairwise(seen) if late > early]
    name = info.implementation.removeprefix("clock_gettime(").rstrip(")")
    return Timer(
        name=name,
        resolution_ns=info.resolution * 1e9,
        step_ns=min(steps, default=0),
        reading_ns=statistics.median(rounds),
    )
