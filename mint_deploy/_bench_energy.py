"""The energy of one model among several, where the counter moves too slowly to tell blocks apart.

The counter of a GPU or of a board moves some ten times a second, and models take turns every 20 ms. So the
first restart gives each model a pass of its own after the turns, of ``STEPS`` steps of the counter: where a
step begins and ends is then an error of a few per cent. Its calls are not among the latencies. Standard
library only: this travels to the board.
"""

from __future__ import annotations

import math
import time

from mint_deploy import sensors
from mint_deploy._bench_base import BLOCK_S, MOST_CALLS
from mint_deploy._bench_child import Child

__all__ = ["SHARE", "STEPS", "is_coarse", "pass_s", "steady"]

#: steps of the counter that a pass lasts
STEPS = 20
#: the most of a restart's time that the passes may take
SHARE = 0.5
#: a pass is asked for in so many pieces: an interrupt waits for one of them
_PIECES = 8


def is_coarse(meter: sensors.EnergyMeter) -> bool:
    """Whether a block is shorter than a step of the counter."""
    return meter.resolution_s > BLOCK_S


def pass_s(meter: sensors.EnergyMeter) -> float:
    """Return the seconds of a model's pass."""
    return STEPS * meter.resolution_s


def steady(child: Child, meter: sensors.EnergyMeter, per_call_s: float) -> tuple[float, float, int]:
    """Let one model work alone; return the millijoules, seconds and calls of that.

    Args:
        child: where the model is open and warm.
        meter: a slow one.
        per_call_s: how long a call takes.
    """
    whole = pass_s(meter)
    count = min(max(math.ceil(whole / _PIECES / per_call_s), 1), MOST_CALLS)
    before, begin, calls = meter.read_uj(), time.perf_counter(), 0
    for _ in range(math.ceil(whole / (count * per_call_s))):
        calls += len(child.ask("block", count=count, settle=0, limit_s=whole)["ns"])
    return meter.between_mj(before, meter.read_uj()), time.perf_counter() - begin, calls
