"""How figures become text: significant digits only, the unit beside the number, absence said aloud.

One place for all three faces of the report (HTML, Markdown, terminal), so that they print the same
digits. Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

__all__ = [
    "NOT_HERE",
    "accuracy_places",
    "between",
    "bytes_",
    "clip",
    "count",
    "decimals",
    "duration",
    "duration_unit",
    "energy",
    "error",
    "factor",
    "figure",
    "fixed",
    "percent",
    "places_of",
    "plain",
    "points",
    "restricted",
    "share",
    "short",
    "significant",
    "span",
    "supported",
    "timed",
]

#: What stands where a figure is absent; the reason stands beside it.
NOT_HERE = "\N{EN DASH}"

_MINUS = "\N{MINUS SIGN}"
# C0 and C1 controls (a name may carry a terminal escape), bidirectional overrides, lone surrogates
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def plain(text: object) -> str:
    """Return ``text`` as one line that no terminal, parser or reading order can be fooled by.

    Line ends and tabs become spaces; other control characters and lone surrogates become U+FFFD.
    """
    line = re.sub(r"[\r\n\t\u2028\u2029]+", " ", str(text))
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", line)


def clip(text: object, width: int) -> str:
    """Return :func:`plain` text of at most ``width`` characters, the middle left out."""
    line = plain(text)
    if len(line) <= width:
        return line
    head = (width - 1) * 2 // 3
    return f"{line[:head]}…{line[len(line) - (width - 1 - head) :]}"


def fixed(value: float, places: int) -> str:
    """Return ``value`` with ``places`` decimals, a true minus sign, and never a minus zero."""
    text = f"{value:.{places}f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.") else _MINUS + text[1:]
    return text


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, never in powers of ten.

    >>> significant(0.49712), significant(1234.5), significant(9.999)
    ('0.497', '1230', '10.0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    return fixed(rounded, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))


def figure(value: float | None, digits: int = 2) -> str:
    """Return a figure that may be tiny or huge: in powers of ten below 0.0001 and from 100,000.

    >>> figure(0.0214), figure(1.4e-13), figure(None)
    ('0.021', '1.4e-13', '–')
    """
    if value is None:
        return NOT_HERE
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return significant(value, digits)
    return error(float(value))


def decimals(half_width: float | None, *, default: int = 1, most: int = 3) -> int:
    """Return how many decimals an uncertainty of ``half_width`` supports.

    The last printed digit stands where the uncertainty begins; a leading 1 or 2 earns one more.

    >>> decimals(0.53), decimals(0.17), decimals(2.6), decimals(7.0)
    (1, 2, 1, 0)
    """
    if half_width is None or not math.isfinite(half_width) or half_width <= 0:
        return default
    exponent = math.floor(math.log10(half_width))
    leading = half_width / 10**exponent
    return min(most, max(0, -exponent + (1 if leading < 3 else 0)))


def count(value: float | None) -> str:
    """Return a whole number with its thousands set apart: ``853,018``."""
    return NOT_HERE if value is None else f"{round(value):,}"


def short(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Return a count with a decimal prefix: ``126 M``; three significant digits unless fewer are known."""
    if value is None:
        return NOT_HERE
    tail = f" {unit}" if unit else ""
    if abs(value) < 1000:
        return f"{significant(value, digits) if digits < 3 else f'{value:.0f}'}{tail}"
    prefixes = "kMGTPE"
    power = 0
    value /= 1000
    while abs(float(f"{value:.2e}")) >= 1000 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{significant(value, digits)} {prefixes[power]}{unit}"


def bytes_(value: float | None) -> str:
    """Return a size in decimal units: ``3.42 MB``."""
    if value is None:
        return NOT_HERE
    return short(value, "B") if abs(value) >= 1000 else f"{value:.0f} bytes"


def duration_unit(value_ns: float) -> tuple[str, float]:
    """Return the unit that a time given in nanoseconds is printed in, and its nanoseconds."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if float(f"{abs(value_ns):.2e}") >= scale:
            return unit, scale
    return "ns", 1.0


def duration(value_ns: float | None, digits: int = 3) -> str:
    """Return a time given in nanoseconds: ``2.01 ms``; three significant digits unless fewer are known."""
    if value_ns is None:
        return NOT_HERE
    unit, scale = duration_unit(value_ns)
    return f"{significant(value_ns / scale, digits)} {unit}"


def between(value: float, low: float | None, high: float | None) -> tuple[str, str]:
    """Return a figure and its interval, both with the digits that the interval supports.

    Three digits at most, a fourth where three would not tell the ends of the interval apart.

    >>> between(3.4123, 3.388, 3.437), between(166.2, 110.4, 240.1), between(3.4123, 3.4112, 3.4134)
    (('3.41', '3.39 to 3.44'), ('170', '110 to 240'), ('3.412', '3.411 to 3.413'))
    """
    if low is None or high is None or not math.isfinite(high - low):
        return significant(value), ""
    half = (high - low) / 2
    if value == 0 or half <= 0:
        return significant(value), f"{significant(low)} to {significant(high)}"
    first, last = math.floor(math.log10(abs(value))), math.floor(math.log10(half))
    last -= 1 if half / 10**last < 3 else 0
    at = min(first, max(first - 2, last))
    if at > last and _to(low, at) == _to(high, at):
        at -= 1
    return _to(value, at), f"{_to(low, at)} to {_to(high, at)}"


def _to(value: float, last: int) -> str:
    """Return ``value`` rounded to the decimal position ``last``: -2 is hundredths, 1 is tens."""
    return fixed(round(value, -last), max(0, -last))


def timed(value_ns: float | None, low_ns: float | None, high_ns: float | None) -> tuple[str, str]:
    """Return a time and its interval, rounded by it: ``("3.41 ms", "3.39 to 3.44")``."""
    if value_ns is None:
        return NOT_HERE, ""
    unit, scale = duration_unit(value_ns)
    ends = (None if end is None else end / scale for end in (low_ns, high_ns))
    said, span_ = between(value_ns / scale, *ends)
    return f"{said} {unit}", span_


def energy(value_mj: float | None) -> str:
    """Return an energy given in millijoules with three significant digits: ``4.21 mJ``, ``38.0 µJ``."""
    if value_mj is None:
        return NOT_HERE
    for unit, scale in (("J", 1e3), ("mJ", 1.0)):
        if float(f"{abs(value_mj):.2e}") >= scale:
            return f"{significant(value_mj / scale)} {unit}"
    return f"{significant(value_mj * 1e3)} µJ"


def supported(value: float | None, low: float | None, high: float | None) -> int:
    """Return how many significant digits, one to three, an interval around ``value`` supports.

    >>> supported(166.2, 110.4, 240.1), supported(3.4123, 3.388, 3.437), supported(3.4, None, None)
    (2, 3, 3)
    """
    if not value or low is None or high is None or not 0 < high - low < math.inf:
        return 3
    half, first = (high - low) / 2, math.floor(math.log10(abs(value)))
    last = math.floor(math.log10(half))
    return min(3, max(1, first - last + 1 + (1 if half / 10**last < 3 else 0)))


def factor(value: float | None, places: int | None = None) -> str:
    """Return a ratio: ``1.73×``; three significant digits unless ``places`` says otherwise."""
    if value is None:
        return NOT_HERE
    return f"{significant(value) if places is None else fixed(value, places)}×"


def percent(fraction: float | None, places: int = 1) -> str:
    """Return a fraction as a percentage: ``92.1 %``."""
    return NOT_HERE if fraction is None else f"{fixed(100 * fraction, places)} %"


def share(fraction: float | None) -> str:
    """Return an exact fraction as a percentage, two significant digits: ``0.42 %``, ``12 %``."""
    if fraction is None:
        return NOT_HERE
    value = 100 * fraction
    return f"{significant(value, 2) if value < 10 else fixed(value, 0)} %"


def points(value: float | None, places: int = 1) -> str:
    """Return a change in percentage points with its sign: ``+0.3``, ``−0.7``."""
    if value is None:
        return NOT_HERE
    text = fixed(value, places)
    return text if text.startswith(_MINUS) or not text.strip("0.") else f"+{text}"


def span(low: float | None, high: float | None, places: int = 2, *, scale: float = 1.0) -> str:
    """Return an interval: ``91.6 to 92.6``; nothing where there is none."""
    if low is None or high is None:
        return ""
    return f"{fixed(scale * low, places)} to {fixed(scale * high, places)}"


def places_of(
    intervals: Iterable[tuple[float | None, float | None]],
    *,
    scale: float = 1.0,
    default: int = 1,
    most: int = 2,
) -> int:
    """Return the decimals that every one of the ``(low, high)`` intervals supports.

    A column of a table is printed with one number of decimals: that of its least certain entry.
    """
    known = [
        decimals(scale * (high - low) / 2, default=default, most=most)
        for low, high in intervals
        if low is not None and high is not None
    ]
    return min(known, default=default)


def accuracy_places(
    intervals: Iterable[tuple[float | None, float | None]], *, scale: float = 100.0
) -> int:
    """Return the decimals of accuracies and of changes in points: one, or two where they hold.

    Never none: 99.7 % must not become 100 %. The interval beside it says how sure it is.
    """
    return max(1, places_of(intervals, scale=scale))


def restricted(gate: Any) -> str:
    """Say how many groups were cut through a statistic over channels; "" where none was."""
    count = gate.get("restricted") or 0
    if not count:
        return ""
    those = "1 of them is" if count == 1 else f"{count} of them are"
    return (
        f"{those} restricted: a normalisation or another statistic runs over its channels, and now over those "
        f"that stay; that is not the same as zeroing what left (the output differs from that by "
        f"{error(gate.get('zero_difference'))})"
    )


def error(value: Any) -> str:
    """Return a relative error, ``3.2e-13``; text (as the gate's *no power*) stays text."""
    if value is None:
        return NOT_HERE
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return plain(value)
    if value == 0:
        return "0"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
