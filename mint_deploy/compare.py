"""A baseline against now: pass, fail, or inconclusive.

Deterministic figures (parameters, MACs, bytes) gate hard on any machine. Clock figures gate only
between runs of the same task on machines with the same fingerprint; those that every process restart
gives (latency, percentiles, throughput) only where the whole confidence interval lies on one side of
the limit. Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mint_deploy import stopping
from mint_deploy.artifacts import Measurement
from mint_deploy.errors import ConfigError, DataError
from mint_deploy.limits import GAUGES, Gauge, Limit, centre, parse_limit, per_restart
from mint_deploy.pairing import (
    Pair,
    Pairing,
    pair_up,
    subject,
    unequal,
    unequal_machine,
    unequal_task,
)

__all__ = ["Check", "Limit", "State", "Verdict", "compare", "parse_limit"]

State = str
_STATES = ("pass", "inconclusive", "fail")
#: names of figures of the whole comparison, not of one measurement, and their units
_UNITS = {"accuracy drop": "points"}
#: the scenario that sweeps over batches
_SWEEP = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One limit and what came of it; ``low`` and ``high`` are the interval where there is one.

    ``now`` and the interval are in ``unit``, as ``baseline`` is. ``subject`` says which of several
    measurements it is about, ``reason`` why it is not a pass.
    """

    name: str
    state: State
    limit: str
    baseline: float | None = None
    now: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    unit: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The checks of one comparison; the worst of them is the state of the whole.

    ``pairs`` are what was compared; ``notes`` what the reader should know beside it.
    """

    checks: tuple[Check, ...]
    pairs: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """``pass``, ``fail`` or ``inconclusive``; without any check there is nothing to break."""
        return max((c.state for c in self.checks), key=_STATES.index, default="pass")

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the measurements hold against themselves, with the side and the label; each once."""
        sides = ((side, getattr(pair, side)) for pair in self.pairs for side in ("baseline", "now"))
        said = (f"{side}, {m.task.label}: {text}" for side, m in sides for text in m.doubts)
        return tuple(dict.fromkeys(said))

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, 1 for a fail, and 3 for inconclusive where ``strict``."""
        return {"pass": 0, "fail": 1, "inconclusive": 3 if strict else 0}[self.state]


def compare(
    baseline: Measurement | Sequence[Measurement],
    now: Measurement | Sequence[Measurement],
    limits: Mapping[str, str | Limit] | None = None,
    *,
    figures: Mapping[str, tuple[float, float]] | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Judge ``now`` against ``baseline``.

    Args:
        baseline: a measurement (its file and label may differ: that is the point), or several, which
            are paired by label and task.
        now: the measurement or measurements in question.
        limits: name -> limit. ``latency``, ``p90``, ``p95``, ``p99``, ``throughput`` (a least, such
            as ``-5%``), ``memory``, ``gpu memory``, ``energy``, ``size``, ``params``, ``macs``,
            ``weights`` and ``activations`` are read from every pair of measurements; any other name
            from ``figures``. Without limits: ``{"latency": "+5%"}``. A sweep over batches that stands
            beside another scenario is held to ``throughput`` alone: it is short.
        figures: deterministic figures of the whole, name -> (baseline, now).
        confidence: of the intervals.

    Raises:
        ConfigError: two different tasks (the field is named), or a limit without its figure.
        DataError: a side without a measurement.
    """
    wanted = {
        name: given if isinstance(given, Limit) else parse_limit(given)
        for name, given in ({"latency": "+5%"} if limits is None else limits).items()
    }
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    figures = figures or {}
    for name in wanted:
        if name not in GAUGES and name not in figures:
            known = ", ".join([*GAUGES, *sorted(figures)])
            raise ConfigError(f"no figure named '{name}' to hold against its limit; known: {known}")
    found = _paired(baseline, now)
    beside = any(pair.now.task.scenario != _SWEEP for pair in found.pairs)

    def counts(m: Measurement, names: Iterable[str] = wanted) -> bool:
        """Whether any of these limits is for it: a sweep beside a latency is short, and is for throughput."""
        return not (beside and m.task.scenario == _SWEEP) or "throughput" in names

    checks = [
        _judged(pair, name, limit, confidence)
        for pair in found.pairs
        for name, limit in wanted.items()
        if name not in figures and counts(pair.now, [name])
    ]
    checks += [_whole(n, *figures[n], limit) for n, limit in wanted.items() if n in figures]
    checks += [_missing(m) for m in found.only_baseline if counts(m)]
    notes = [
        f"new: {subject(m.task)}; the baseline has nothing to hold against it"
        for m in found.only_now
        if counts(m)
    ]
    return Verdict(checks=tuple(checks), pairs=found.pairs, notes=tuple(notes))


def _paired(
    baseline: Measurement | Sequence[Measurement], now: Measurement | Sequence[Measurement]
) -> Pairing:
    """Two measurements belong together because the caller says so; several are paired by task."""
    if isinstance(baseline, Measurement) and isinstance(now, Measurement):
        if unequal_task(baseline.task, now.task):
            raise ConfigError(unequal(baseline.task, now.task))
        return Pairing(pairs=(Pair(baseline=baseline, now=now),))
    sides = ([side] if isinstance(side, Measurement) else list(side) for side in (baseline, now))
    return pair_up(*sides)


def _whole(name: str, before: float, after: float, limit: Limit) -> Check:
    """A figure of the whole comparison, as the caller gave it."""
    unit = GAUGES[name].unit if name in GAUGES else _UNITS.get(name, "")
    blank = Check(name=name, state="inconclusive", limit=str(limit), unit=unit)
    return _value(blank, before, after, limit)


def _missing(m: Measurement) -> Check:
    """What the baseline measured and nobody measured now: nothing broke, and nothing is known."""
    return Check(
        name="measured",
        state="inconclusive",
        limit="",
        reason="only the baseline has it; measure it again, or make the baseline anew without it",
        subject=subject(m.task),
    )


def _judged(pair: Pair, name: str, limit: Limit, confidence: float) -> Check:
    """Hold one figure of a pair against its limit."""
    gauge = GAUGES[name]
    blank = Check(
        name=name,
        state="inconclusive",
        limit=str(limit),
        unit=gauge.unit,
        subject=pair.name,
    )
    if gauge.key:
        return _deterministic(pair, blank, limit, gauge.key)
    if gauge.field:
        return _one_value(pair, blank, limit, gauge.field)
    return _over_restarts(pair, blank, limit, gauge, confidence)


# ---------------------------------------------------------------- figures with an interval


def _over_restarts(
    pair: Pair, blank: Check, limit: Limit, gauge: Gauge, confidence: float
) -> Check:
    name = blank.name
    if not limit.relative:
        sign = "-" if gauge.larger else "+"
        raise ConfigError(
            f"the limit of the {name} is {limit}; expected a percentage such as {sign}5%"
        )
    (first, why), (second, why_not) = (per_restart(m, name) for m in (pair.baseline, pair.now))
    if why or why_not:
        return replace(blank, reason=why or why_not)
    base = centre(first)
    seen = replace(blank, baseline=base, now=centre(second))
    field = unequal_machine(pair.baseline, pair.now)
    if field:
        return replace(seen, reason=_other_machine(field))
    a, b = pair.baseline, pair.now
    if name != "latency":
        # a restart that holds this one figure; whole numbers of nine digits or more
        scale = 1e9 / min(*first, *second)
        a, b = (
            replace(m, restarts_ns=tuple((round(scale * v),) for v in values), blocks=())
            for m, values in ((a, first), (b, second))
        )
    try:
        found = stopping.between(a, b, confidence=confidence, in_turns=pair.interleaved)
    except DataError as error:
        return replace(seen, reason=str(error))
    seen = replace(seen, now=base * found.ratio, low=base * found.low, high=base * found.high)
    text = f"{name} is {found.ratio - 1:+.1%} [{found.low - 1:+.1%}, {found.high - 1:+.1%}]"
    worst, best = (found.low, found.high) if gauge.larger else (found.high, found.low)
    if limit.holds(1.0, worst, larger=gauge.larger):
        return replace(seen, state="pass")
    if not limit.holds(1.0, best, larger=gauge.larger):
        edge = "at least" if gauge.larger else "at most"
        return replace(seen, state="fail", reason=f"{text}, {edge} {limit} was allowed")
    return replace(seen, reason=f"{text}: the interval straddles {limit}")


def _other_machine(field: str) -> str:
    return (
        f"machines differ: {field}; clock figures are compared on equal machines only: make the "
        "baseline anew on this one"
    )


# ---------------------------------------------------------------- figures without an interval


def _one_value(pair: Pair, blank: Check, limit: Limit, field: str) -> Check:
    """A clock figure that a measurement has once; memory is taken above the import baseline."""
    values = []
    for m in (pair.baseline, pair.now):
        value = getattr(m, field)
        if value is None:
            why = m.nulls.get(field, "not measured")
            return replace(blank, reason=f"no {blank.name} of '{m.task.label}': {why}")
        below = (m.import_rss_bytes or 0) if field == "peak_rss_bytes" else 0
        values.append(float(value) - below)
    unequal_field = unequal_machine(pair.baseline, pair.now)
    if unequal_field:
        reason = _other_machine(unequal_field)
        return replace(blank, baseline=values[0], now=values[1], reason=reason)
    return _value(blank, values[0], values[1], limit)


def _deterministic(pair: Pair, blank: Check, limit: Limit, key: str) -> Check:
    """A figure that no clock moves: it gates on any machine."""
    before, after = (m.figures.get(key) for m in (pair.baseline, pair.now))
    if before is not None and after is not None:
        return _value(blank, before, after, limit)
    m = pair.baseline if before is None else pair.now
    if key not in m.nulls:
        raise ConfigError(
            f"'{m.task.label}' was measured {m.started} without its {blank.name} ({key}); "
            "measure it anew, or compare two run folders"
        )
    reason = f"no {blank.name} of '{m.task.label}': {m.nulls[key]}"
    return replace(blank, baseline=before, now=after, reason=reason)


def _value(blank: Check, before: float, after: float, limit: Limit) -> Check:
    """A figure without an interval: it holds or it does not."""
    name = blank.name
    if not (math.isfinite(before) and math.isfinite(after)):
        raise ConfigError(f"{name} is {before} and {after}; expected finite numbers")
    seen = replace(blank, baseline=before, now=after)
    if limit.holds(before, after):
        return replace(seen, state="pass")
    was, became = (
        f"{v:,.0f}" if v.is_integer() else f"{v:.4g}" for v in map(float, (before, after))
    )
    reason = f"{name} went from {was} to {became}, allowed was {limit}"
    return replace(seen, state="fail", reason=reason)
