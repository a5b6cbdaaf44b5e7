"""Restarts until the question is answered or the time is over; it can be interrupted between any two."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mint_deploy import digits, statistics
from mint_deploy._bench_base import MeasuringStopped, Progress
from mint_deploy._bench_turns import Turns
from mint_deploy.artifacts import Comparison, Machine, Measurement
from mint_deploy.doubts import FEW_RESTARTS
from mint_deploy.statistics import Interval
from mint_deploy.stopping import Rule, between

__all__ = ["Loop"]

#: no restart measures for more than this share of the time, so that a noisy machine has enough of them
_LONGEST = 1 / 15


@dataclass(slots=True, kw_only=True)
class Loop:
    """The restarts of one comparison; without a ``rule`` there are ``restarts`` of them.

    ``budget_s`` is counted from ``begin`` (of the monotonic clock); ``restarts`` are done in any case.
    """

    turns: Turns
    restarts: int
    budget_s: float
    begin: float
    rule: Rule | None
    confidence: float
    seed: int
    progress: Progress | None
    took: list[float] = field(default_factory=list)
    logs: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    over: bool = False

    @property
    def labels(self) -> list[str]:
        """The models, A first."""
        return list(self.turns.records)

    def run(self) -> None:
        """Add restarts; KeyboardInterrupt passes through, with the whole restarts kept."""
        self._tell(0.0)
        while not self.over:
            started = time.monotonic()
            order = self.labels if self.turns.done % 2 == 0 else self.labels[::-1]
            share = self._left_s() / max(self.restarts - self.turns.done, 1)
            longest = math.inf if self.rule is None else self.budget_s * _LONGEST
            self.turns.restart(order, share, self._tell, longest_s=longest)
            self.took.append(time.monotonic() - started)
            self.over = self._ended()
            self._tell(0.0)

    def _left_s(self) -> float:
        return self.begin + self.budget_s - time.monotonic()

    def _ended(self) -> bool:
        done = self.turns.done
        self.note = self._standing()
        if done < self.restarts:
            return False
        if self.rule is None:
            return True
        enough = all(self.turns.enough_in_all(label) for label in self.labels)
        if enough and self.rule.looks(done) and not self.unanswered():
            return True
        return self._left_s() < statistics.median(self.took)

    def _tell(self, part: float) -> None:
        if self.progress is None:
            return
        done = self.turns.done
        if self.rule is None:
            note = f"restart {min(done + 1, self.restarts)} of {self.restarts}"
            at, whole = min(done + min(part, 1.0), self.restarts), float(self.restarts)
        else:
            note = f"restart {done + 1}"
            at, whole = min(self.budget_s - self._left_s(), self.budget_s), self.budget_s
        if self.over:
            note, at = f"{done} restarts", whole
        what = self.note or f"{' and '.join(self.labels)} in turns"
        self.progress(at, whole, f"{note}, {what}")

    # ------------------------------------------------------------ what is known so far

    def series(self) -> dict[str, list[float]]:
        """One logarithm a restart: of B over A for each B, or of the median where A is alone."""
        first, *others = self.labels
        for label in others or [first]:
            known = self.logs.setdefault(label, [])
            known += [self._log(first, label, r) for r in range(len(known), self.turns.done)]
        return self.logs

    def _log(self, first: str, label: str, r: int) -> float:
        a, b = self.turns.records[first], self.turns.records[label]
        if first == label:
            return math.log(max(statistics.median(a.restarts[r]), 1.0))
        blocks = ([a.blocks[r]], [b.blocks[r]])
        return statistics.log_ratios([a.restarts[r]], [b.restarts[r]], blocks)[0]

    def intervals(self) -> dict[str, Interval]:
        """The interval of each series as it stands; empty before the second restart."""
        if self.turns.done < 2:
            return {}
        make: Callable[[list[float]], Interval] = (
            self.rule.interval
            if self.rule is not None
            else lambda logs: statistics.ratio_interval(
                logs, confidence=self.confidence, seed=self.seed
            )
        )
        return {label: make(logs) for label, logs in self.series().items()}

    def unanswered(self) -> dict[str, str]:
        """What the rule wanted of each series and has not got, in words."""
        if self.rule is None:
            return {}
        found = self.intervals()
        if not found:
            return dict.fromkeys(self.labels[-1:], "not converged: one restart has no interval")
        return {
            label: self.rule.unanswered(one)
            for label, one in found.items()
            if not self.rule.answered(one)
        }

    def _standing(self) -> str:
        """The interval as it shrinks, in words."""
        first = self.labels[0]
        return ", ".join(
            f"{label} takes {digits.duration(one.ratio, one.low, one.high)}"
            if label == first
            else f"{label} takes {digits.figure(one.ratio, one.low, one.high)} of {first}"
            for label, one in self.intervals().items()
        )

    # ------------------------------------------------------------ the result

    def result(
        self, machine: Machine, started: str, stopped: KeyboardInterrupt | None = None
    ) -> tuple[list[Measurement], list[Comparison]]:
        """Return what was measured; MeasuringStopped carries it where it was ``stopped``."""
        open_ = self.unanswered()
        note = f"interrupted after {self.turns.done} restarts: this is what was measured by then"
        cut = (note,) if stopped is not None else ()
        sequential = self.rule is not None
        measured = [
            self.turns.measurement(
                label,
                machine,
                started,
                converged=None
                if self.rule is None and stopped is None
                else self.turns.enough_in_all(label) and not open_ and stopped is None,
                sequential=sequential,
                notes=(*cut, *dict.fromkeys(open_.values())),
            )
            for label in self.labels
        ]
        compared = []
        if self.turns.done > 1:
            compared = [
                self._compared(
                    measured[0], other, (*cut, *filter(None, [open_.get(other.task.label)]))
                )
                for other in measured[1:]
            ]
        if stopped is not None:
            raise MeasuringStopped(note, measured, compared) from stopped
        return measured, compared

    def _compared(self, a: Measurement, b: Measurement, notes: tuple[str, ...]) -> Comparison:
        found = between(a, b, confidence=self.confidence, seed=self.seed)
        late = [m.task.label for m in (a, b) if not m.converged]
        if late and not notes:
            notes += (f"not converged within the time budget: {', '.join(late)}",)
        notes += self._medians_apart(a, b, found)
        if found.n < FEW_RESTARTS:
            notes += (f"{found.n} restarts: the interval is to be trusted from {FEW_RESTARTS} on",)
        return Comparison(
            a=a.task.label,
            b=b.task.label,
            ratio=found.ratio,
            low=found.low,
            high=found.high,
            confidence=found.confidence,
            restarts=found.n,
            doubts=notes,
        )

    def _medians_apart(self, a: Measurement, b: Measurement, found: Interval) -> tuple[str, ...]:
        """A doubt where the medians of whole restarts have another ratio than the neighbours."""
        logs = statistics.log_ratios(a.restarts_ns, b.restarts_ns)
        other = statistics.ratio_interval(logs, confidence=self.confidence, seed=self.seed)
        if found.low <= other.high and other.low <= found.high:
            return ()
        shown = digits.figure(other.ratio, other.low, other.high)
        text = (
            f"the medians of whole restarts have the ratio {shown}: the latencies of the two are "
            "shaped differently, or one of them waited more often; look at both distributions"
        )
        return (text,)
