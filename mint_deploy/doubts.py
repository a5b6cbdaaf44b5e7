"""What a measurement holds against itself: each doubt is a sentence with its number.

Pure functions of raw latencies and the machine record, so that an old measurement can be doubted
anew. Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

from collections.abc import Sequence

from mint_deploy import statistics
from mint_deploy.artifacts import Machine

__all__ = ["FEW_RESTARTS", "doubts"]

#: a t interval over fewer restarts than this covers less than it says
FEW_RESTARTS = 5
_SPREAD, _DRIFT, _DISAGREE = 0.10, 0.05, 0.10


def doubts(
    restarts_ns: Sequence[Sequence[int]],
    machine: Machine,
    *,
    threads: int = 1,
    converged: bool = True,
    interleaved: bool = False,
) -> tuple[str, ...]:
    """Return what speaks against figures from ``restarts_ns`` on ``machine``.

    Spread and drift are taken within each restart, and the median over restarts is judged: a slow
    restart is a difference between restarts, not a drift.
    """
    out = []
    seen = [samples for samples in restarts_ns if len(samples)]
    if not converged:
        out.append(
            "not converged: the time budget ended before the minimum time, the minimum count and "
            "the wanted precision of the median were reached"
        )
    if interleaved and len(seen) < FEW_RESTARTS:
        out.append(f"{len(seen)} restarts: the interval is to be trusted from {FEW_RESTARTS} on")
    if seen:
        spread = statistics.median([statistics.spread(s) for s in seen])
        if spread > _SPREAD:
            out.append(
                f"the middle half of the latencies spans {spread:.0%} of the median "
                f"(over {_SPREAD:.0%}): something else runs here, or the clocks move"
            )
        drift = statistics.median([statistics.drift(s) for s in seen])
        if abs(drift) > _DRIFT:
            out.append(
                f"latency drifts by {drift:+.0%} from the first to the last third "
                f"(over {_DRIFT:.0%}): warming up, or throttling"
            )
        middles = [statistics.median(s) for s in seen]
        apart = (max(middles) - min(middles)) / statistics.median(middles)
        if len(middles) > 1 and apart > _DISAGREE:
            out.append(
                f"the medians of the restarts lie {apart:.0%} apart (over {_DISAGREE:.0%}): "
                "a restart is not like the next"
            )
    if machine.load_average is not None and machine.load_average > machine.cores:
        out.append(
            f"load average {machine.load_average:.1f} on {machine.cores:g} cores "
            "before the measuring began: other work took part"
        )
    if machine.governor is not None and machine.governor != "performance":
        out.append(f"the CPU governor is '{machine.governor}', not 'performance': clocks move")
    if threads > 1 and threads >= machine.cores:
        out.append(
            f"{threads} threads take every core ({machine.cores:g}): on a shared machine this "
            "widens the spread several-fold"
        )
    return tuple(out)
