"""How many threads numpy's BLAS takes.

Sampling and scoring make thousands of products of matrices of a few hundred rows. Two threads share such a
product more slowly than one makes it, and while they wait for the next they take the cores from PyTorch's own
(measured on two cores: eight times the time of ResNet-56's whole sampling).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["LARGE", "few_threads", "threads"]

#: matrices of more rows than this are worth all threads
LARGE = 1024


@contextlib.contextmanager
def few_threads(dimension: int = 0) -> Iterator[None]:
    """Hold numpy's BLAS to one thread while matrices have at most :data:`LARGE` rows; PyTorch keeps its own."""
    if dimension > LARGE:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def threads() -> int:
    """Return how many threads numpy's BLAS takes now, 1 where that is not known."""
    from threadpoolctl import threadpool_info

    return max(
        (int(p["num_threads"]) for p in threadpool_info() if p["user_api"] == "blas"), default=1
    )
