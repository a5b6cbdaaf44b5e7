"""95 % intervals of proportions, of paired differences of proportions, and of means.

One proportion has Wilson's score interval (J. Am. Stat. Assoc. 22:209, 1927). The difference of
two networks seen on the SAME samples is a difference of paired proportions: its interval is
Tango's score interval (Statistics in Medicine 17:891, 1998). It needs only the samples lost, the
samples gained and their number, and stays sensible where both are zero.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from mint_deploy.errors import DataError

__all__ = ["mean_interval", "paired_interval", "wilson"]

_Z = NormalDist().inv_cdf(0.975)


def wilson(right: int, samples: int, *, z: float = _Z) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (95 % unless ``z`` says otherwise)."""
    if not 0 <= right <= samples or samples < 1:
        raise DataError(f"{right} right of {samples} samples is no proportion")
    p, shrink = right / samples, 1 + z * z / samples
    centre = (p + z * z / (2 * samples)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples * samples))
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == samples else centre + half
    return low, high


def paired_interval(lost: int, gained: int, samples: int, *, z: float = _Z) -> tuple[float, float]:
    """Return Tango's score interval of the drop ``(lost - gained) / samples``.

    Args:
        lost: samples that only the first network has right.
        gained: samples that only the second network has right.
        samples: all samples, the same for both.
        z: normal quantile; the default gives 95 %.
    """
    if min(lost, gained) < 0 or lost + gained > samples or samples < 1:
        raise DataError(f"{lost} lost and {gained} gained do not fit {samples} samples")

    def outside(delta: float) -> bool:
        """Whether the score test rejects ``delta`` as the true difference."""
        b = -lost - gained + (2 * samples - lost + gained) * delta
        c = -gained * delta * (1 - delta)
        only_second = (math.sqrt(max(0.0, b * b - 8 * samples * c)) - b) / (4 * samples)
        variance = samples * (2 * only_second + delta * (1 - delta))
        distance = lost - gained - samples * delta
        return distance * distance > z * z * max(0.0, variance)

    def edge(inner: float, outer: float) -> float:
        if not outside(outer):
            return outer
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        return (inner + outer) / 2

    estimate = (lost - gained) / samples
    return edge(estimate, -1.0), edge(estimate, 1.0)


def mean_interval(values: npt.NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return the 95 % t interval of a mean, inside ``low`` to ``high``."""
    if len(values) < 2:
        return low, high
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return max(low, mean - half), min(high, mean + half)
