"""Figures with no more digits than their interval supports: ``3.42 ms ± 0.05``, never ``3.4187``.

The uncertainty keeps one significant digit, two where the first is a 1 or a 2; the figure ends where
its uncertainty ends. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import math

__all__ = ["duration", "figure", "places", "rounded"]

_UNITS = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1.0))


def places(half_width: float) -> int:
    """Return the decimals that an uncertainty supports, negative for tens and hundreds.

    >>> places(0.053), places(0.0143), places(7.0), places(430.0)
    (2, 3, 0, -2)
    """
    # as it will be shown: 0.0296 is 3.0e-2, and 0.0996 is 1.0e-1
    leading, exponent = f"{half_width:.1e}".split("e")
    return -int(exponent) + (1 if float(leading) < 3 else 0)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def _two(value: float) -> str:
    """Two significant digits, in powers of ten where the figure is absurd."""
    if value == 0 or not math.isfinite(value) or not 1e-6 < abs(value) < 1e9:
        return f"{value:.2g}"
    near = float(f"{value:.1e}")
    return _fixed(near, 1 - math.floor(math.log10(abs(near))))


def rounded(value: float, half_width: float) -> str:
    """Return a figure that ends where its uncertainty ends; three digits where there is none.

    >>> rounded(3.4187, 0.05), rounded(3.4187, 12.0), rounded(0.5, 0.0)
    ('3.42', '3', '0.500')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    first = math.floor(math.log10(abs(value)))
    if half_width <= 0:
        return _fixed(float(f"{value:.2e}"), 2 - first)
    # whatever its uncertainty is, a figure keeps its first digit
    return _fixed(value, max(places(half_width), -first))


def figure(value: float, low: float | None = None, high: float | None = None) -> str:
    """Return a figure with half its interval: ``0.982 ± 0.012``.

    Without an interval two significant digits are all that is claimed. An interval wider than twice
    the figure is shown by its ends.

    >>> figure(0.98213, 0.97, 0.994), figure(1234.5, 770, 1700), figure(0.5)
    ('0.982 ± 0.012', '1200 ± 500', '0.50')
    >>> figure(0.77, 0.185, 3.19)
    '0.8 (0.18 to 3.2)'
    """
    if low is None or high is None or not math.isfinite(high - low):
        return _two(value)
    half = (high - low) / 2
    # narrower than that it is rounding errors of the sums
    if half <= 1e-9 * abs(value):
        return rounded(value, 0.0)
    if half > abs(value):
        return f"{rounded(value, half)} ({_two(low)} to {_two(high)})"
    return f"{rounded(value, half)} ± {_fixed(half, places(half))}"


def duration(ns: float, low: float | None = None, high: float | None = None) -> str:
    """Return a time given in nanoseconds with half its interval: ``3.42 ms ± 0.05``.

    >>> duration(3_418_700, 3_370_000, 3_470_000), duration(812.4)
    ('3.42 ms ± 0.05', '810 ns')
    """
    unit, scale = next(((u, s) for u, s in _UNITS if abs(ns) >= s), _UNITS[-1])
    scaled = [None if v is None else v / scale for v in (low, high)]
    number, *rest = figure(ns / scale, *scaled).split(" ", 1)
    return " ".join([number, unit, *rest])
