"""A baseline against now: pass, fail, or inconclusive.

Deterministic figures (parameters, MACs, bytes) gate hard on any machine. Clock figures gate only
between runs of the same task on machines with the same fingerprint, and only where the whole
confidence interval lies on one side of the limit. Standard library and numpy only.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mint_deploy import statistics
from mint_deploy.artifacts import Measurement
from mint_deploy.errors import ConfigError, DataError

__all__ = ["Check", "Limit", "State", "Verdict", "compare", "parse_limit"]

State = str
_STATES = ("pass", "inconclusive", "fail")
#: limits that compare reads from the measurements; any other name is looked up in ``figures``
_MEASURED = ("latency", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far above the baseline a figure may be: ``0.05`` relative is ``+5%``."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value * 100:+g}%" if self.relative else f"{self.value:+g}"

    def most(self, baseline: float) -> float:
        """Return the largest value that is still allowed."""
        return baseline * (1 + self.value) if self.relative else baseline + self.value


def parse_limit(text: str) -> Limit:
    """Read ``+5%``, ``5%``, ``-10%`` (it must have improved) or ``+3`` (in the figure's own unit).

    Raises:
        ConfigError: anything else, or -100 % and less.
    """
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not found or (found[2] and float(found[1]) <= -100):
        raise ConfigError(f"limit {text!r} cannot be read; expected something like +5% or +3")
    value = float(found[1])
    return Limit(value=value / 100 if found[2] else value, relative=bool(found[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One limit and what came of it; for clock figures ``low`` and ``high`` are the interval.

    ``now`` and the interval are in the unit of ``baseline`` (nanoseconds, bytes, ...). ``reason``
    says why it is not a pass.
    """

    name: str
    state: State
    limit: str
    baseline: float | None = None
    now: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The checks of one comparison; the worst of them is the state of the whole."""

    checks: tuple[Check, ...]

    @property
    def state(self) -> State:
        """``pass``, ``fail`` or ``inconclusive``; without any check there is nothing to break."""
        return max((c.state for c in self.checks), key=_STATES.index, default="pass")

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, 1 for a fail, and 3 for inconclusive where ``strict``."""
        return {"pass": 0, "fail": 1, "inconclusive": 3 if strict else 0}[self.state]


def compare(
    baseline: Measurement,
    now: Measurement,
    limits: Mapping[str, str | Limit] | None = None,
    *,
    figures: Mapping[str, tuple[float, float]] | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Judge ``now`` against ``baseline``.

    Args:
        baseline: a measurement of the same task (its file and label may differ: that is the point).
        now: the measurement in question.
        limits: ``latency`` and ``memory`` are read from the measurements, any other name from
            ``figures``. Without limits: ``{"latency": "+5%"}``.
        figures: deterministic figures, name -> (baseline, now): bytes, parameters, MACs.
        confidence: of the interval of the latency.

    Raises:
        ConfigError: two different tasks (the field is named), or a limit without its figure.
    """
    limits = {"latency": "+5%"} if limits is None else limits
    figures = figures or {}
    unequal = _unequal_task(baseline, now)
    if unequal:
        raise ConfigError(
            f"these measurements are not of one task: {unequal}; measure both with equal settings"
        )
    checks = []
    for name, given in limits.items():
        limit = given if isinstance(given, Limit) else parse_limit(given)
        if name == "latency":
            checks.append(_latency(baseline, now, limit, confidence))
        elif name == "memory":
            checks.append(_memory(baseline, now, limit))
        elif name in figures:
            checks.append(_figure(name, *figures[name], limit))
        else:
            known = ", ".join([*_MEASURED, *sorted(figures)])
            raise ConfigError(f"no figure named '{name}' to hold against its limit; known: {known}")
    return Verdict(checks=tuple(checks))


def _unequal_task(a: Measurement, b: Measurement) -> str | None:
    """Name the first setting that differs, with both values; label and file may differ."""
    for f in dataclasses.fields(a.task):
        first, second = getattr(a.task, f.name), getattr(b.task, f.name)
        if f.name in ("label", "sha256") or first == second:
            continue
        if f.name == "flags":
            one, other = dict(first), dict(second)
            key = next(k for k in sorted({*one, *other}) if one.get(k) != other.get(k))
            return f"flag '{key}' is {one.get(key)!r} and {other.get(key)!r}"
        return f"{f.name} is {first!r} and {second!r}"
    return None


def _unequal_machine(a: Measurement, b: Measurement) -> str | None:
    """Name the first field of the fingerprints that differs, with both values."""
    first, second = a.machine.fingerprint(), b.machine.fingerprint()
    for name, value in first.items():
        other = second[name]
        if value == other:
            continue
        if isinstance(value, Mapping):
            name, value, other = next(
                (f"version of {k}", value.get(k), other.get(k))
                for k in sorted({*value, *other})
                if value.get(k) != other.get(k)
            )
        return f"{name} is {value!r} and {other!r}"
    return None


def _latency(a: Measurement, b: Measurement, limit: Limit, confidence: float) -> Check:
    if not limit.relative:
        raise ConfigError(f"the limit of the latency is {limit}; expected a percentage such as +5%")

    def check(state: State, why: str = "", /, **values: float) -> Check:
        found = {name: values.get(name) for name in ("baseline", "now", "low", "high")}
        return Check(name="latency", state=state, limit=str(limit), reason=why, **found)

    medians = [[statistics.median(ns) for ns in m.restarts_ns if ns] for m in (a, b)]
    if not all(medians):
        return check("inconclusive", "a measurement without a latency")
    base = statistics.median(medians[0])
    unequal = _unequal_machine(a, b)
    if unequal:
        return check(
            "inconclusive",
            f"machines differ: {unequal}; clock figures are compared on equal machines only",
            baseline=base,
            now=statistics.median(medians[1]),
        )
    try:
        if _interleaved(a, b):
            logs = statistics.log_ratios(a.restarts_ns, b.restarts_ns)
            found = statistics.ratio_interval(logs, confidence=confidence)
        else:
            found = statistics.welch_interval(*medians, confidence=confidence)
    except DataError as error:
        return check("inconclusive", str(error), baseline=base, now=statistics.median(medians[1]))
    values = {
        "baseline": base,
        "now": base * found.ratio,
        "low": base * found.low,
        "high": base * found.high,
    }
    most = limit.most(1.0)
    seen = f"{found.ratio - 1:+.1%} [{found.low - 1:+.1%}, {found.high - 1:+.1%}]"
    if found.high <= most:
        return check("pass", **values)
    if found.low > most:
        return check("fail", f"latency is {seen}, at most {limit} was allowed", **values)
    return check("inconclusive", f"latency is {seen}: the interval straddles {limit}", **values)


def _interleaved(a: Measurement, b: Measurement) -> bool:
    """Whether both were measured in turns, so that their restarts belong together in pairs."""
    return (
        a.started == b.started
        and a.task.label in (b.partner or "").split(", ")
        and b.task.label in (a.partner or "").split(", ")
        and len(a.restarts_ns) == len(b.restarts_ns)
        and all(a.restarts_ns)
        and all(b.restarts_ns)
    )


def _memory(a: Measurement, b: Measurement, limit: Limit) -> Check:
    """Peak memory above the import baseline: it belongs to the machine and its versions too."""
    values = []
    for m in (a, b):
        if m.peak_rss_bytes is None:
            reason = m.nulls.get("peak_rss_bytes", "not measured")
            return Check(
                name="memory",
                state="inconclusive",
                limit=str(limit),
                reason=f"no peak memory of '{m.task.label}': {reason}",
            )
        values.append(float(m.peak_rss_bytes - (m.import_rss_bytes or 0)))
    unequal = _unequal_machine(a, b)
    if unequal:
        return Check(
            name="memory",
            state="inconclusive",
            limit=str(limit),
            baseline=values[0],
            now=values[1],
            reason=f"machines differ: {unequal}",
        )
    return _figure("memory", values[0], values[1], limit)


def _figure(name: str, before: float, after: float, limit: Limit) -> Check:
    """A figure without an interval: it holds or it does not."""
    if not (math.isfinite(before) and math.isfinite(after)):
        raise ConfigError(f"{name} is {before} and {after}; expected finite numbers")
    kept = after <= limit.most(before)
    return Check(
        name=name,
        state="pass" if kept else "fail",
        limit=str(limit),
        baseline=before,
        now=after,
        reason="" if kept else f"{name} went from {before:g} to {after:g}, allowed was {limit}",
    )
