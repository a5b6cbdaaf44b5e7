"""One restart's ratio from blocks that were neighbours in time.

Two models took turns in blocks A B B A ...; what disturbs the machine for a while is in both blocks
of a pair, or spoils few pairs. Successive blocks with at least eight calls of each model make a
group; B's lower quartile over A's is the figure of a group, and the median over the groups that of
the restart.

The lower quartile, because on a busy machine nearly half of the calls wait for somebody else. A wait
is as long for a fast model as for a slow one: medians that hold it draw the ratio to 1, and where one
of two holds it, apart. The quartile of eight calls is free of it up to five waiting ones. Measured on
a busy machine of two cores (``python benchmarks/neighbours.py``): medians of neighbouring blocks find
1.10 where 1.11 is true, and medians of whole restarts spread several times as much. Where nobody
disturbs, the ratio of the quartiles is that of the medians. Standard library and numpy only: this
travels to the board.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mint_deploy.errors import DataError

__all__ = ["GROUP", "log_ratio"]

#: calls of each model that make a group
GROUP = 8

Values = npt.NDArray[np.float64]


def log_ratio(
    a: Values, b: Values, lengths_a: Sequence[int], lengths_b: Sequence[int]
) -> float | None:
    """Return the logarithm of B's time over A's, or None where a quartile is not above zero.

    Args:
        a: latencies of A, ``[calls]``.
        b: latencies of B.
        lengths_a: how many of them each block has, in order of time; two blocks or more.
        lengths_b: the same for B; block ``i`` of both are neighbours.

    Raises:
        DataError: the lengths are not those of the latencies.
    """
    groups = _groups(_split(a, lengths_a), _split(b, lengths_b))
    quartiles = [(_quartile(x), _quartile(y)) for x, y in groups]
    if min(map(min, quartiles)) <= 0:
        return None
    return float(np.median([math.log(above / below) for below, above in quartiles]))


def _split(values: Values, lengths: Sequence[int]) -> list[Values]:
    if min(lengths) < 1 or sum(lengths) != len(values):
        raise DataError(
            f"the blocks of a restart hold {sum(lengths)} latencies, the restart {len(values)}; "
            "the file was changed: measure anew"
        )
    return np.split(values, np.cumsum(lengths)[:-1])


def _groups(a: Sequence[Values], b: Sequence[Values]) -> list[tuple[Values, Values]]:
    """An even number of blocks each, as A B B A is balanced; the rest belongs to the last group."""
    ends, last = [0], min(len(a), len(b))
    for end in range(2, last + 1, 2):
        if min(sum(map(len, side[ends[-1] : end])) for side in (a, b)) >= GROUP:
            ends.append(end)
    ends = [*ends[:-1], last] if len(ends) > 1 else [0, last]
    return [(np.concatenate(a[i:j]), np.concatenate(b[i:j])) for i, j in itertools.pairwise(ends)]


def _quartile(values: Values) -> float:
    """The lower quartile, interpolated."""
    ordered = np.sort(values)
    at = 0.25 * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (at - low) * (ordered[high] - ordered[low]))
