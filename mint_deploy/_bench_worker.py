"""The process that measures: it holds a model and answers one request a line, in JSON.

    {"do": "open", "runtime", "engine", "threads",   load; -> load_ns, import_rss_bytes, specs
     "streams", "cores"}
    {"do": "feed", "batch", "seed", "inputs"}        make the inputs; -> the shapes fed
    {"do": "warm", "seconds", "count", "limit_s"}    run until both are reached; -> ns
    {"do": "block", "count", "settle", "limit_s"}    run ``count`` times; -> ns, settle_ns
    {"do": "peak"}                                   -> peak_rss_bytes

With several ``streams`` a call is a burst of so many queries, each with a session and a thread of
its own. ``cores``: those that it may compute on (null: all). Between two requests it only waits, so
that several such processes take turns on one machine. It ends when its input is closed, so it never
outlives the process that started it. Started by :mod:`mint_deploy._bench_child`; standard library and
numpy, and whatever the runtime needs.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy import files, plugins
from mint_deploy._bench_streams import Burst
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError, InternalError, MintDeployError
from mint_deploy.runtimes import DYNAMIC, Arrays, Runner

__all__ = ["main", "peak_rss_bytes", "random_inputs", "timed", "warm_up"]


def timed(
    infer: Callable[[Arrays], object], inputs: Arrays, count: int, limit_s: float = float("inf")
) -> list[int]:
    """Return the nanoseconds of each of ``count`` calls; fewer when ``limit_s`` has passed."""
    clock = time.perf_counter_ns
    out = [0] * count
    stop = clock() + min(limit_s, 1e9) * 1e9
    for i in range(count):
        begin = clock()
        infer(inputs)
        end = clock()
        out[i] = end - begin
        if end > stop:
            return out[: i + 1]
    return out


def warm_up(
    infer: Callable[[Arrays], object], inputs: Arrays, seconds: float, count: int, limit_s: float
) -> list[int]:
    """Call until ``seconds`` have passed AND ``count`` calls are done, or ``limit_s`` is over."""
    out: list[int] = []
    begin = time.perf_counter()
    while True:
        out += timed(infer, inputs, 1)
        passed = time.perf_counter() - begin
        if passed >= limit_s or (passed >= seconds and len(out) >= count):
            return out


def random_inputs(
    specs: Sequence[TensorSpec], batch: int = 1, seed: int = 0
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return standard normal numbers for float inputs and zeros for whole ones, ``batch`` samples.

    Raises:
        ConfigError: the model's batch is fixed at another number, or a later dimension is open.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    for spec in specs:
        first = spec.shape[0] if spec.shape else batch
        if first not in (DYNAMIC, batch):
            raise ConfigError(
                f"batch {batch} was asked for, but input '{spec.name}' is fixed at {first}; "
                f"use batch {first}, or export with an open batch"
            )
        shape = (batch, *spec.shape[1:]) if spec.shape else ()
        if DYNAMIC in shape:
            raise ConfigError(
                f"input '{spec.name}' {list(spec.shape)} leaves more than the batch open; "
                "give the inputs themselves"
            )
        kind = np.dtype(spec.dtype)
        floating = np.issubdtype(kind, np.floating)
        values = rng.standard_normal(shape) if floating else np.zeros(shape)
        out[spec.name] = values.astype(kind)
    return out


def peak_rss_bytes() -> int | None:
    """Return the peak resident memory of this process (VmHWM), or None where /proc has none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class _Worker:
    """A session (or one a stream) and its inputs."""

    def __init__(self) -> None:
        self._runners: list[Runner] = []
        self._call: Callable[[Arrays], object] | None = None
        self._inputs: Arrays = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what one request asks for."""
        verb = request.pop("do")
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self._open,
            "feed": self._feed,
            "warm": self._warm,
            "block": self._block,
            "peak": self._peak,
        }
        return verbs[verb](**request)

    def _live(self) -> Callable[[Arrays], object]:
        if self._call is None:
            raise InternalError("the measuring process was asked to run before 'open'")
        return self._call

    def _open(
        self,
        runtime: str,
        engine: dict[str, Any],
        threads: int,
        streams: int = 1,
        cores: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        # before there is a session, so that its threads are held to them too
        if cores is not None:
            os.sched_setaffinity(0, cores)
        plugin, wanted = plugins.load("runtime", runtime), files.decode(Engine, engine)
        made: list[Runner] = [plugin.runner(wanted, threads=threads) for _ in range(streams)]
        # the runtime's library is imported by now, the model not loaded: the import baseline
        imported = peak_rss_bytes()
        begin = time.perf_counter_ns()
        self._runners = [runner.__enter__() for runner in made]
        load_ns = time.perf_counter_ns() - begin
        first = self._runners[0].infer
        # its threads are daemons: they end with this process
        self._call = first if streams == 1 else Burst([r.infer for r in self._runners]).__enter__()
        gc.collect()
        gc.disable()
        return {
            "import_rss_bytes": imported,
            "load_ns": load_ns,
            "engine": files.encode(self._runners[0].engine),
            "inputs": files.encode(self._runners[0].inputs),
        }

    def _feed(self, batch: int, seed: int, inputs: str | None) -> dict[str, Any]:
        self._live()
        if inputs is None:
            self._inputs = random_inputs(self._runners[0].inputs, batch, seed)
        else:
            self._inputs = files.read_arrays(inputs)[1]
        return {
            "inputs": [
                {"name": n, "shape": list(a.shape), "dtype": str(a.dtype)}
                for n, a in self._inputs.items()
            ]
        }

    def _warm(self, seconds: float, count: int, limit_s: float) -> dict[str, Any]:
        return {"ns": warm_up(self._live(), self._inputs, seconds, count, limit_s)}

    def _block(self, count: int, settle: int, limit_s: float) -> dict[str, Any]:
        infer = self._live()
        settled = timed(infer, self._inputs, settle, limit_s)
        return {"settle_ns": settled, "ns": timed(infer, self._inputs, count, limit_s)}

    def _peak(self) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_rss_bytes()}


def main() -> None:
    """Answer requests until the input ends."""
    # Ctrl-C reaches the whole process group; the parent decides what becomes of its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # whatever a library prints goes to stderr: the answers keep stdout to themselves
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = _Worker()
    for line in sys.stdin:
        try:
            reply = {"ok": worker.answer(json.loads(line))}
        except (MintDeployError, MemoryError) as error:
            reply = {"error": {"type": type(error).__name__, "message": str(error)}}
        try:
            answers.write(json.dumps(reply) + "\n")
            answers.flush()
        except BrokenPipeError:
            os._exit(1)


if __name__ == "__main__":
    main()
