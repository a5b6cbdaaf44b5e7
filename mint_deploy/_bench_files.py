"""Measuring files in fresh processes that take turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from mint_deploy import files, plugins, sensors
from mint_deploy._bench_base import Progress, Settings, now, positive, streams_of
from mint_deploy._bench_child import PATIENCE_S
from mint_deploy._bench_cores import on_gpu
from mint_deploy._bench_loop import Loop
from mint_deploy._bench_turns import Record, Turns
from mint_deploy.artifacts import Comparison, Machine, Measurement
from mint_deploy.doubts import FEW_RESTARTS
from mint_deploy.errors import ConfigError
from mint_deploy.machine import probe
from mint_deploy.runtimes import Arrays
from mint_deploy.stopping import Rule

__all__ = ["interleave", "metered"]


def metered(runtime: str) -> dict[str, Any]:
    """Return what :class:`Turns` needs of the energy meter: the meter, its idle power, or why none."""
    meter, reason = sensors.find_meter(gpu=on_gpu(runtime))
    idle_w = sensors.idle_w(meter) if meter else 0.0
    return {"meter": meter, "idle_w": idle_w, "no_meter": reason}


def interleave(
    paths: Mapping[str, str | PathLike[str]],
    *,
    runtime: str = "onnxruntime",
    scenario: str = "single_stream",
    streams: int | None = None,
    threads: int = 1,
    batch: int = 1,
    inputs: Arrays | None = None,
    restarts: int = 5,
    half_width: float | None = 0.01,
    limit: float | None = None,
    budget_s: float = 60.0,
    settings: Settings | None = None,
    confidence: float = 0.95,
    pin: bool = True,
    seed: int = 0,
    machine: Machine | None = None,
    target: object = None,
    targets: Mapping[str, object] | None = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> tuple[list[Measurement], list[Comparison]]:
    """Measure files in turns, and compare each with the first.

    Every restart starts one fresh process a file and runs blocks A B B A ...; only one of them
    computes at a time, and who begins alternates. A restart's ratio is that of neighbouring blocks
    (:mod:`mint_deploy._blocks`); its interval is taken over restarts, and restarts are added until
    it is good enough (:mod:`mint_deploy.stopping`).

    Args:
        paths: label -> file; the first label is A of every comparison. A single file is measured
            alone, and the interval is that of its median.
        runtime: name of a runtime that runs files.
        scenario: ``single_stream``, ``offline`` (the same on whole batches; :func:`throughput`
            sweeps them) or ``multi_stream`` (bursts of queries, each with a session of its own).
        streams: queries of a burst under ``multi_stream``: 8.
        threads: compute threads of each session.
        batch: samples a query.
        inputs: name -> array, the same for all; random numbers where absent.
        restarts: process restarts at least; 5 or more for an interval to be trusted.
        half_width: of the interval, as a fraction of the ratio, that ends the restarts; None (and no
            ``limit``): exactly ``restarts`` of them.
        limit: how much longer than A a file may take, as a fraction: restarts end when the interval
            lies on one side of it.
        budget_s: seconds for everything. It ends warm-up and measuring early, not the first round
            of blocks of a restart; what it cut short is called not converged.
        settings: when a model of a restart has enough.
        confidence: of the interval.
        pin: hold the processes of a restart to as many cores as they have threads, all to the same.
        seed: of the random inputs.
        machine: who measures; probed where absent.
        target: what the engines are built for (its precision is recorded).
        targets: label -> what that file is built for, where it is another than ``target``.
        progress: called with what is done, the whole (restarts, or seconds where their number is
            open), and a note with the interval so far.
        patience_s: seconds of silence after which a process is given up.

    Returns:
        A Measurement a label in the order of ``paths``, and a Comparison for each but the first.

    Raises:
        ConfigError: a setting that makes no sense; the batch is fixed at another number.
        ModelError: a file that the runtime does not load.
        MeasuringStopped: Ctrl-C after a whole restart; it carries what was measured.
        MintDeployError: a measuring process died or fell silent; how and its last words.
    """
    if not paths:
        raise ConfigError("no file to measure was given")
    if restarts < (2 if len(paths) > 1 else 1):
        raise ConfigError(
            f"restarts is {restarts}; two files need at least 2 for an interval, "
            f"and {FEW_RESTARTS} for one to be trusted"
        )
    positive(budget_s=budget_s, threads=threads, batch=batch)
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    if limit is not None and len(paths) < 2:
        raise ConfigError(f"limit is {limit}, and there is one file; expected two to compare")
    rule = None
    if limit is not None or half_width is not None:
        width = {} if half_width is None else {"half_width": half_width}
        rule = Rule(at_least=restarts, limit=limit, confidence=confidence, **width)
    several = streams_of(scenario, streams)
    begin, started, machine = time.monotonic(), now(), machine or probe()
    plugin = plugins.load("runtime", runtime)
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        fed = None
        if inputs is not None:
            fed = str(Path(folder) / "inputs.npz")
            files.write_arrays(fed, {}, inputs)
        turns = Turns(
            records={
                label: Record(plugin.build(path, (targets or {}).get(label, target), None))
                for label, path in paths.items()
            },
            runtime=runtime,
            threads=threads,
            batch=batch,
            settings=settings or Settings(),
            scenario=scenario,
            streams=several,
            pin=pin,
            seed=seed,
            inputs=fed,
            patience_s=patience_s,
            **metered(runtime),
        )
        loop = Loop(
            turns=turns,
            restarts=restarts,
            budget_s=budget_s,
            begin=begin,
            rule=rule,
            confidence=confidence,
            seed=seed,
            progress=progress,
        )
        try:
            loop.run()
        except KeyboardInterrupt as stopped:
            if not turns.done:
                raise
            turns.drop_unfinished()
            loop.result(machine, started, stopped)
            raise
    return loop.result(machine, started)
