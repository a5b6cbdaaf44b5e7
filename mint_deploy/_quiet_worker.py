"""The process that does a fixed piece of work over and over: what a quiet machine does evenly.

The piece is a product of two 192 x 192 float32 matrices, as often as makes about two milliseconds:
vector units and caches, as in a small network. One request a line on stdin, one answer on stdout:

    {"calibrate": ms}                -> how many products make so many milliseconds
    {"products": n, "pieces": m}     -> the nanoseconds of each of m pieces

It ends when its input is closed. Started by :mod:`mint_deploy.quiet`; numpy alone.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time

import numpy as np

__all__ = ["main"]

_SIZE = 192
_WARM_UP_S = 0.04


def main() -> None:
    """Answer requests until the input ends."""
    # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((_SIZE, _SIZE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    clock = time.perf_counter_ns

    def piece(products: int) -> int:
        begin = clock()
        for _ in range(products):
            np.matmul(a, b, out=out)
        return clock() - begin

    warm = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < warm:
        piece(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "calibrate" in request:
            fastest = max(min(piece(1) for _ in range(20)), 1)
            answer: object = max(math.ceil(request["calibrate"] * 1e6 / fastest), 1)
        else:
            answer = [piece(request["products"]) for _ in range(request["pieces"])]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
