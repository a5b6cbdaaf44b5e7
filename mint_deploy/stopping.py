"""How many restarts are enough, and an interval that stays honest although one looked.

A fixed number of restarts wastes time on a quiet machine and decides nothing on a noisy one, so
restarts are added until the interval is narrow enough, or lies on one side of a limit. But whoever
stops when an interval looks good stops too often when it is wrong: with the 95 % t interval at each
look a limit that is the true ratio is excluded in 15 % of the runs, and in 22 % where the machine's
speed wanders; intervals that were found narrow enough cover in 93 % and 89 %. What is done about it:

* Looks are few: after 5, 7, 10, 14, 20, 28 ... restarts (each count 1.4 times the last), and once
  more where the time ends.
* The interval of a look is a t interval at a seventh of the error: at 99.3 % where 95 % is claimed.
  Up to seven looks, 40 restarts, this is Bonferroni's bound: it holds for any reason to stop, the
  user's Ctrl-C included. Looks share their restarts and err together, so more of them do no harm.
* Restarts that follow one another may resemble each other (a neighbour stays for a while), and then
  ``n`` of them tell less than ``n``: the variance is multiplied by ``(1 + r) / (1 - r)``, with ``r``
  the correlation of successive restarts, corrected for its bias and never taken below 0.

The alternatives were measured (``python benchmarks/interval_coverage.py``): the plain t interval,
Stein's two stages, a studentised bootstrap at each look. Every generator there, stopping included,
must be covered in 93 % or more. Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mint_deploy import statistics
from mint_deploy._student import t_quantile
from mint_deploy.artifacts import Measurement
from mint_deploy.errors import ConfigError, DataError
from mint_deploy.statistics import Interval

__all__ = ["FIRST_LOOK", "Rule", "between", "interval", "is_look", "resemblance"]

#: restarts at the first look; a t interval over fewer is too wide to decide anything
FIRST_LOOK = 5
#: each look has so many times the restarts of the last
_GROWTH = 1.4
#: the share of the error that a look may spend
_SHARE = 1 / 7
#: the largest correlation of successive restarts that is believed
_MOST_ALIKE = 0.7


def is_look(n: int, at_least: int = FIRST_LOOK) -> bool:
    """Whether the rule looks at the interval after ``n`` restarts."""
    look = max(at_least, FIRST_LOOK)
    while look < n:
        look = math.ceil(look * _GROWTH)
    return look == n


def resemblance(values: Sequence[float]) -> float:
    """Return the correlation of successive ``[restarts]`` values, between 0 and 0.7.

    The estimate from ``n`` values is low by about ``1 / n``, which is put right.
    """
    n = len(values)
    off = np.asarray(values, dtype=np.float64) - np.mean(values)
    whole = float(off @ off)
    if n < 3 or whole <= 0:
        return 0.0
    return min(max(float(off[1:] @ off[:-1]) / whole + 1 / n, 0.0), _MOST_ALIKE)


def interval(logs: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return the interval of a rule's look at ``[restarts]`` logarithms of ratios (or of medians).

    Args:
        logs: one value a restart, in the order of time.
        confidence: what is claimed; the interval itself is made at a seventh of the error.

    Raises:
        DataError: fewer than two restarts, or a value that is not finite.
        ConfigError: a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    n, values = len(logs), np.asarray(logs, dtype=np.float64)
    statistics.at_least_two(n, "the measurement")
    if not np.isfinite(values).all():
        raise DataError("interval over restarts: a restart's figure is not finite")
    strict = 1 - _SHARE * (1 - confidence)
    alike = resemblance(logs)
    error = float(values.std(ddof=1)) / math.sqrt(n) * math.sqrt((1 + alike) / (1 - alike))
    centre, reach = float(values.mean()), t_quantile((1 + strict) / 2, n - 1) * error
    return Interval(
        ratio=math.exp(centre),
        low=math.exp(centre - reach),
        high=math.exp(centre + reach),
        confidence=confidence,
        n=n,
        method=f"t interval over restarts at {100 * strict:.1f} %, for looking more than once",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When the restarts suffice.

    Args:
        at_least: restarts that are done in any case; the first look is not before ``FIRST_LOOK``.
        half_width: of the interval as a fraction of the ratio, which is narrow enough.
        limit: how much longer B may take, as a fraction (0.03: three percent). With a limit the
            question is on which side the ratio lies, and ``half_width`` has no part in it.
        confidence: of the interval.

    Raises:
        ConfigError: a value that makes no sense.
    """

    at_least: int = FIRST_LOOK
    half_width: float = 0.01
    limit: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.half_width < math.inf:
            raise ConfigError(f"half_width is {self.half_width}, expected a number above 0")
        if self.limit is not None and not -1 < self.limit < math.inf:
            raise ConfigError(f"limit is {self.limit}, expected a fraction such as 0.05")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence is {self.confidence}, expected between 0 and 1")

    def interval(self, logs: Sequence[float]) -> Interval:
        """Return the interval as it stands; see :func:`interval`."""
        return interval(logs, confidence=self.confidence)

    def looks(self, n: int) -> bool:
        """Whether ``n`` restarts are a count after which the rule may stop."""
        return is_look(n, self.at_least)

    def answered(self, found: Interval) -> bool:
        """Whether an interval answers the question."""
        if self.limit is None:
            return found.half_width <= self.half_width
        return found.high <= 1 + self.limit or found.low > 1 + self.limit

    def unanswered(self, found: Interval) -> str:
        """Say in words what an interval does not answer."""
        if self.limit is None:
            return (
                f"not converged: the interval is ±{100 * found.half_width:.3g} % when the time ended, "
                f"±{100 * self.half_width:g} % was wanted; give it more time, or a quieter machine"
            )
        return (
            f"not decided: the interval {found.low:.3f} to {found.high:.3f} holds the limit "
            f"{1 + self.limit:g}"
        )


def between(
    a: Measurement,
    b: Measurement,
    *,
    confidence: float = 0.95,
    in_turns: bool = True,
    seed: int = 0,
) -> Interval:
    """Return B's time over A's, with the interval that belongs to how both were measured.

    Args:
        a: the first.
        b: the second.
        confidence: of the interval.
        in_turns: whether their restarts belong together in pairs.
        seed: of the bootstrap from twenty restarts on, where their number was fixed beforehand.

    Raises:
        DataError: too few restarts, restarts that do not belong together, or damaged blocks.
    """
    sequential = a.sequential or b.sequential
    if in_turns:
        blocks = (a.blocks, b.blocks) if a.blocks and b.blocks else None
        logs = statistics.log_ratios(a.restarts_ns, b.restarts_ns, blocks)
        if sequential:
            return interval(logs, confidence=confidence)
        return statistics.ratio_interval(logs, confidence=confidence, seed=seed)
    medians = [[statistics.median(ns) for ns in m.restarts_ns if ns] for m in (a, b)]
    strict = 1 - _SHARE * (1 - confidence) if sequential else confidence
    return statistics.welch_interval(*medians, confidence=strict)
