"""The bench of a run: dense and slim in turns, and then what else there is to know of the two files.

    single_stream    both in turns, in fresh processes: the latency, and its ratio. Where the target's precision
                     stands in files of its own, and its runtime is here, those take turns with them:
                     ``dense int8``, ``slim int8``
    figures          bytes, parameters, MACs, peak activations: computed from the files
    layers           the runtime's profiler, in a process of its own
    offline          a short sweep over the batch, on copies of the files whose batch is open

What comes after the latency is done within the same time budget, and what there is no time for is missing
with that reason. An interrupt keeps what was measured; ``--resume`` measures anew.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mint_deploy import bench as measuring
from mint_deploy import plugins, statistics
from mint_deploy.artifacts import Measurement
from mint_deploy.errors import MintDeployError
from mint_deploy.job import Job
from mint_deploy.layer_times import layer_times
from mint_deploy.open_batch import open_batch
from mint_deploy.precision import delivered, in_the_file
from mint_deploy.profile_layers import with_figures, with_layers
from mint_deploy.target import Target

__all__ = ["measure_run", "sweep_batches"]

#: of the ratio's interval, as a fraction: narrow enough to end the restarts
HALF_WIDTH = 0.02
#: the most that all besides the latency may take, and its share of a smaller budget
REST_S, REST_SHARE = 10.0, 0.2
#: of it, the most for the calls of one profile
PROFILE_S = 1.0
#: batches of the sweep; those whose call would take longer than ``CALL_S`` are left out
BATCHES, CALL_S = (1, 4, 16, 64), 0.15
SWEEP_RESTARTS = 2
#: what a fresh process takes at least before it measures, and what it then has for a batch at least
START_S, MEASURE_S = 0.3, 0.25


def measure_run(job: Job, *, budget_s: float, restarts: int) -> None:
    """Measure dense and slim on this machine, and write measurements.jsonl and comparison.json.

    Args:
        job: the run; ``dense.onnx`` and ``model.onnx`` are there.
        budget_s: seconds for everything.
        restarts: process restarts of the comparison.
    """
    rest_s = min(REST_S, REST_SHARE * budget_s)
    runtime = _runtime(job.target)
    paths = {"dense": job.run / "dense.onnx", "slim": job.run / "model.onnx"}
    floats, lower = list(paths), {}
    if runtime == job.target.runtime and in_the_file(job.target):
        made = delivered(job.run.path, job.target)
        lower = {
            f"{label} {job.target.precision}": path
            for label, path in made.items()
            if path.is_file()
        }
    own = dataclasses.replace(job.target, precision="fp32")
    try:
        found, compared = measuring.interleave(
            paths | lower,
            runtime=runtime,
            threads=job.target.threads,
            batch=job.target.batch,
            restarts=restarts,
            half_width=HALF_WIDTH,
            budget_s=budget_s - rest_s,
            seed=job.request.seed,
            target=job.target if runtime == job.target.runtime else own,
            targets=dict.fromkeys(floats, own) if lower else None,
            progress=job.progress.step,
        )
    except measuring.MeasuringStopped as stopped:
        paths |= lower
        kept = [with_figures(m, paths[m.task.label]) for m in stopped.measured]
        measuring.save(job.run.path, kept, stopped.compared)
        raise
    found = [with_figures(m, (paths | lower)[m.task.label]) for m in found]
    measuring.save(job.run.path, found, compared)
    lowered, found = found[len(floats) :], found[: len(floats)]
    end = time.monotonic() + rest_s
    took = []
    for i, m in enumerate(found):
        job.progress.step(i, len(found), f"where the time goes in {m.task.label}")
        begin = time.monotonic()
        found[i] = _with_layers(job, m, paths[m.task.label], end - begin)
        took.append(time.monotonic() - begin)
    # a profile starts a process too: what the faster one took is what a process takes here, or less
    swept, reason = _sweeps(job, found, paths, end, max(min(took), START_S))
    if reason:
        found = [dataclasses.replace(m, nulls={**m.nulls, "knee": reason}) for m in found]
    measuring.save(job.run.path, [*found, *lowered, *swept], compared)


def _runtime(target: Target) -> str:
    """Return the target's runtime where it runs files on this machine, else ONNX Runtime's name."""
    plugin = plugins.load("runtime", target.runtime)
    return target.runtime if plugin.missing() is None else "onnxruntime"


def _with_layers(job: Job, measurement: Measurement, path: Path, left_s: float) -> Measurement:
    """Watch a few calls with the profiler on; where that fails the measurement says why."""
    if left_s < START_S:
        reason = f"the time budget left {max(left_s, 0.0):.1f} s, too little to start the profiler"
        return with_layers(measurement, path, reason=reason)
    try:
        times = layer_times(
            path,
            runtime=measurement.task.runtime,
            threads=measurement.task.threads,
            batch=measurement.task.batch,
            limit_s=PROFILE_S,
            seed=job.request.seed,
        )
        return with_layers(measurement, path, times)
    except MintDeployError as error:
        return with_layers(measurement, path, reason=str(error))


def sweep_batches(
    per_sample_s: float, left_s: float, start_s: float, files: int = 2
) -> tuple[list[int], str]:
    """Return the batches that there is time to sweep, or none and why.

    Args:
        per_sample_s: seconds that a sample takes.
        left_s: seconds that are left for all files together.
        start_s: seconds that a fresh process takes before it measures.
        files: how many files are swept.
    """
    batches = [b for b in BATCHES if b * per_sample_s <= CALL_S]
    if len(batches) < 2:
        return [], (
            f"no sweep over the batch: a call with {BATCHES[1]} samples takes longer than the "
            f"{CALL_S:g} s that it may; measure with more time: mint-deploy bench --scenario offline"
        )
    # a process for each batch, and one that asks the file for its inputs
    most = int((left_s / files - start_s) / (start_s + MEASURE_S))
    if most < 2:
        return [], (
            f"no sweep over the batch: the time budget leaves {max(left_s, 0.0):.1f} s, and two batches of "
            f"{files} files need {files * (3 * start_s + 2 * MEASURE_S):.1f} s here"
        )
    return batches[:most], ""


def _sweeps(
    job: Job, found: Sequence[Measurement], paths: Mapping[str, Path], end: float, start_s: float
) -> tuple[list[Measurement], str]:
    """Return the offline measurements of both files, or why there are none."""
    slowest = max(statistics.median([ns for r in m.restarts_ns for ns in r]) for m in found)
    batches, reason = sweep_batches(
        slowest / found[0].task.batch / 1e9, end - time.monotonic(), start_s, len(found)
    )
    if reason:
        return [], reason
    out: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        for i, m in enumerate(found):
            label = m.task.label
            tell = functools.partial(_tell, job, f"{label} over the batch")
            try:
                opened = open_batch(paths[label], Path(folder) / f"{label}.onnx")
                swept = measuring.throughput(
                    opened,
                    batches,
                    m.task.threads,
                    runtime=m.task.runtime,
                    label=label,
                    restarts=SWEEP_RESTARTS,
                    budget_s=max((end - time.monotonic()) / (len(found) - i), start_s),
                    settings=measuring.Settings(
                        warmup_s=0.02, warmup_count=2, min_s=0.1, min_count=10, precision=0.05
                    ),
                    seed=job.request.seed,
                    machine=m.machine,
                    progress=tell,
                )
            except MintDeployError as error:
                return [], f"no sweep over the batch: {error}"
            gaps = {f"batch {size}": why for size, why in swept.nulls.items()}
            out += [_of_the_copy(s, paths[label], gaps) for s in swept.measurements]
    return out, ""


def _tell(job: Job, what: str, done: float, total: float, note: str) -> None:
    job.progress.step(done, total, f"{what}: {note}")


def _of_the_copy(measurement: Measurement, path: Path, gaps: Mapping[str, str]) -> Measurement:
    """Say in the key that the batch was opened, and which batches are missing."""
    task = measurement.task
    flags = tuple(sorted({**dict(task.flags), "batch": "opened in a copy of the file"}.items()))
    return with_figures(
        dataclasses.replace(
            measurement,
            task=dataclasses.replace(task, flags=flags),
            nulls={**measurement.nulls, **gaps},
        ),
        path,
    )
