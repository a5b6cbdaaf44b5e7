"""The process that profiles (:mod:`mint_deploy.layer_times`): one request on its input, one answer, the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from mint_deploy import files, plugins
from mint_deploy.artifacts import Engine, LayerTime
from mint_deploy.bench import random_inputs
from mint_deploy.errors import ConfigError, MintDeployError

__all__ = ["main", "profiled"]

#: calls before the watched ones; the fastest tells how many there is time for
WARM_UP = 3
#: where the profiler's clock is the kernel's own
_CPU = "CPUExecutionProvider"


def profiled(request: Mapping[str, Any]) -> list[LayerTime]:
    """Answer a request of :func:`mint_deploy.layer_times.layer_times`.

    Raises:
        ConfigError: the runtime has no profiler, or one that does not time what it runs.
    """
    runtime, calls, limit_s = request["runtime"], request["calls"], request["limit_s"]
    plugin = plugins.load("runtime", runtime)
    with plugin.runner(files.decode(Engine, request["engine"]), threads=request["threads"]) as live:
        profile = getattr(live, "profile", None)
        if profile is None:
            raise ConfigError(f"the runtime '{runtime}' has no profiler that times each layer")
        provider = live.engine.flags.get("provider", _CPU)
        if provider != _CPU:
            raise ConfigError(
                f"the profiler of '{runtime}' times when a kernel of {provider} is started, not how long it runs"
            )
        if request["inputs"] is None:
            inputs = random_inputs(live.inputs, request["batch"], request["seed"])
        else:
            inputs = files.read_arrays(request["inputs"])[1]
        fastest, end = float("inf"), time.monotonic() + 0.3 * limit_s
        for _ in range(WARM_UP):
            begin = time.perf_counter()
            live.infer(inputs)
            fastest = min(fastest, time.perf_counter() - begin)
            if time.monotonic() > end:
                break
        fits = 0.7 * limit_s / max(fastest, 1e-9)
        count = int(max(min(calls, fits), 1))
        return [
            LayerTime(name=str(name), op=str(op), ns=float(ns), calls=count)
            for name, op, ns in profile(inputs, count)
        ]


def main() -> None:
    """Read the request, answer it."""
    # whatever a library prints goes to stderr: the answer keeps stdout to itself
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        reply: dict[str, Any] = {
            "layers": [files.encode(row) for row in profiled(json.load(sys.stdin))]
        }
    except (MintDeployError, MemoryError) as error:
        reply = {"error": str(error) or type(error).__name__}
    with answer:
        json.dump(reply, answer)


if __name__ == "__main__":
    main()
