"""Where the time goes inside a model: the time of each node, as the runtime's own profiler tells it.

A profiler slows what it watches, so it gets a fresh process and calls of its own: no latency of a measurement is
taken beside it. Asked is the runner's ``profile(inputs, calls) -> [(node, operator, ns)]``, where it has one.
Times are medians over the calls, in nanoseconds.

Which of our layers a node belongs to stands in the ONNX file (:mod:`mint_deploy.profile_layers`), not here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_deploy import files, plugins
from mint_deploy.artifacts import Engine, LayerTime
from mint_deploy.errors import ConfigError, MintDeployError
from mint_deploy.runtimes import Arrays

__all__ = ["CALLS", "LayerRow", "joined", "layer_times"]

#: calls that are watched, unless the time is over before
CALLS = 30
#: seconds beyond its own limit after which the process is given up
PATIENCE_S = 120.0


def layer_times(
    path: str | os.PathLike[str],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    inputs: Arrays | None = None,
    calls: int = CALLS,
    limit_s: float = 5.0,
    seed: int = 0,
    target: object = None,
    engine: Engine | None = None,
    patience_s: float = PATIENCE_S,
) -> tuple[LayerTime, ...]:
    """Return the median time of each node of a model, in a fresh process, in the order of execution.

    Args:
        path: the model's file.
        runtime: name of a runtime that runs files and has a profiler.
        threads: compute threads of the session.
        batch: samples a call.
        inputs: name -> array; random numbers where absent.
        calls: calls that are watched; a few more warm up.
        limit_s: seconds for all calls; at least one is made.
        seed: of the random inputs.
        target: what the engine is built for.
        engine: what ``path`` was built into already.
        patience_s: seconds beyond ``limit_s`` after which the process is stopped.

    Raises:
        ConfigError: ``calls`` below 1, or the batch is fixed at another number.
        ModelError: a file that the runtime does not load.
        MintDeployError: the runtime has no profiler, or its process died; its last words.
    """
    if calls < 1 or not limit_s > 0:
        raise ConfigError(f"calls is {calls} and limit_s {limit_s}, expected numbers above 0")
    engine = engine or plugins.load("runtime", runtime).build(path, target, None)
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        fed = None
        if inputs is not None:
            fed = str(Path(folder) / "inputs.npz")
            files.write_arrays(fed, {}, inputs)
        request = {
            "runtime": runtime,
            "engine": files.encode(engine),
            "threads": threads,
            "batch": batch,
            "seed": seed,
            "inputs": fed,
            "calls": calls,
            "limit_s": limit_s,
        }
        reply = _asked(request, limit_s + patience_s)
    if "error" in reply:
        raise MintDeployError(str(reply["error"]))
    return tuple(files.decode(LayerTime, row) for row in reply["layers"])


def _asked(request: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Run the process that profiles and return its answer."""
    # the folder (or the zip) that this package was imported from
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    name = Path(request["engine"]["path"]).name
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mint_deploy._layer_child"],
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment,
            timeout=limit_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MintDeployError(
            f"the process that profiles {name} did not answer within {limit_s:.0f} s and was stopped"
        ) from None
    if done.returncode:
        words = [s for s in done.stderr.decode(errors="replace").splitlines() if s.strip()]
        tail = f"; its last words: {' | '.join(words[-3:])}" if words else ""
        raise MintDeployError(
            f"the process that profiles {name} ended with exit code {done.returncode}{tail}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# ---------------------------------------------------------------- before beside after


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One of our layers before and after the cut; None where that side does not have it.

    ``layer`` None: all nodes that belong to none of our layers, together. ``ns`` is for one call.
    """

    layer: str | None
    width_before: int | None
    width_after: int | None
    ns_before: float | None
    ns_after: float | None


def joined(dense: Sequence[LayerTime], slim: Sequence[LayerTime]) -> tuple[LayerRow, ...]:
    """Return a row for each layer of either network, in the order of ``dense``, the rest last.

    The nodes of one layer are added up, so each column sums to the time of all its nodes.
    """
    before, after = _by_layer(dense), _by_layer(slim)
    names: list[str | None] = [n for n in dict.fromkeys([*before, *after]) if n is not None]
    if None in before or None in after:
        names.append(None)
    rows = []
    for name in names:
        a, b = before.get(name), after.get(name)
        rows.append(
            LayerRow(
                layer=name,
                width_before=a[0] if a else None,
                width_after=b[0] if b else None,
                ns_before=a[1] if a else None,
                ns_after=b[1] if b else None,
            )
        )
    return tuple(rows)


def _by_layer(times: Iterable[LayerTime]) -> dict[str | None, tuple[int | None, float]]:
    """Return layer -> width and nanoseconds of all its nodes."""
    out: dict[str | None, tuple[int | None, float]] = {}
    for t in times:
        width, ns = out.get(t.layer, (None, 0.0))
        if t.layer is not None:
            width = t.width if width is None else width
        out[t.layer] = (width, ns + t.ns)
    return out
