"""Student's t without scipy: the quantile that the intervals of :mod:`mint_deploy.statistics` need.

The tail is the regularised incomplete beta function by its continued fraction (Lentz's method), the
quantile is found by bisection. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import math
from functools import lru_cache

from mint_deploy.errors import ConfigError

__all__ = ["t_quantile"]


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            step = c * d
            value *= step
        if abs(step - 1.0) < 1e-16:
            break
    return value


def _two_sided_tail(t: float, df: float) -> float:
    """``P[|T| > t]`` for Student's t with ``df`` degrees of freedom, ``t >= 0``."""
    a, b = df / 2, 0.5
    x, y = df / (df + t * t), t * t / (df + t * t)
    if y == 0.0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front - a * math.log1p(t * t / df) + b * math.log(y))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, y) / b


@lru_cache(maxsize=512)
def t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t with ``df`` degrees of freedom (need not be whole).

    Raises:
        ConfigError: ``probability`` outside (0, 1), or ``df`` not above 0.
    """
    if not 0 < probability < 1:
        raise ConfigError(f"probability is {probability:g}, expected a number between 0 and 1")
    if not (df > 0 and math.isfinite(df)):
        raise ConfigError(f"{df:g} degrees of freedom, expected a number above 0")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while _two_sided_tail(high, df) > tail:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _two_sided_tail(middle, df) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2
