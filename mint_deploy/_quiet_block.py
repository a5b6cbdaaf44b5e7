"""One block of ``doctor --machine``: two processes that do the same work, in turns A B B A.

The work is :mod:`mint_deploy._quiet_worker`'s, calibrated once to about two milliseconds and then the
same in every process. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mint_deploy.errors import MintDeployError
from mint_deploy.looks import Watch

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Block"]

PIECE_MS = 2.0
_PIECES_A_TURN = 10
_PATIENCE_S = 60.0


class Block:
    """Two processes in turns; ``ns`` are the runs of each."""

    def __init__(self) -> None:
        self.ns: tuple[list[int], list[int]] = ([], [])
        self.mhz: list[float] = []
        self.done = False

    def run(self, products: int | None, end: float, watch: Watch, tell: Callable[[], None]) -> int:
        """Let them take turns until ``end``, a whole round A B B A at the least.

        Args:
            products: how much work a piece is; calibrated where absent.
            end: by time.monotonic.
            watch: reads the clock while they work.
            tell: called after each round.

        Returns:
            The products of a piece, for the next block.
        """
        with _Busy() as first, _Busy() as second:
            sides = (first, second)
            products = products or int(first.ask(calibrate=PIECE_MS))
            while True:
                for side in (0, 1, 1, 0):
                    self.ns[side].extend(sides[side].ask(products=products, pieces=_PIECES_A_TURN))
                    mhz = watch.mhz()
                    self.mhz += [] if mhz is None else [mhz]
                tell()
                if time.monotonic() >= end:
                    break
        self.done = True
        return products


class _Busy:
    """The parent's end of one process that works (:mod:`mint_deploy._quiet_worker`)."""

    def __enter__(self) -> Self:
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, os.environ.get("PYTHONPATH", "")]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mint_deploy._quiet_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), **threads},
            start_new_session=True,
        )
        return self

    def ask(self, **request: float) -> Any:
        """Send one request and return its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise MintDeployError("the process that does the work has no pipes")
        line = b""
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            while not line.endswith(b"\n") and select.select([stdout], [], [], _PATIENCE_S)[0]:
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    break
                line += part
        except BrokenPipeError:
            pass  # it died: told below, as if it had not answered
        if not line.endswith(b"\n"):
            raise MintDeployError(
                "the process that does the same work over and over died or gave no answer within "
                f"{_PATIENCE_S:.0f} s (exit code {self._process.poll()}); try it by hand: "
                "python -m mint_deploy._quiet_worker"
            )
        return json.loads(line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
