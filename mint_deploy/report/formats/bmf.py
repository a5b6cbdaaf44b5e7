"""Bencher Metric Format: today's figures, each with the ends of its interval, for ``bencher run --adapter json``.

Benchmark name -> measure -> ``value``, ``lower_value``, ``upper_value``. ``latency`` (nanoseconds) and
``throughput`` (samples a second) are Bencher's own measures, ``file-size`` (bytes) is the one of its
``--file-size``; the others are made when first seen. What is not there is left out: the format has no null.
Source: https://bencher.dev/docs/reference/bencher-metric-format/
"""

from __future__ import annotations

import json

from mint_deploy.artifacts import Measurement, TaskSpec
from mint_deploy.report import words
from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._figures import Figure, figures

__all__ = ["benchmark", "text"]

#: a benchmark's name has at most 1024 characters there
_NAME = 1000
_MEASURES = {"size": "file-size"}


def benchmark(task: TaskSpec) -> str:
    """Return a name that is the same in every run: ``slim/onnxruntime-fp32/single_stream/batch-1/threads-1``."""
    streams = f"/streams-{task.streams}" if task.streams != 1 else ""
    label = words.clip(task.label, _NAME - 200)
    return words.clip(
        f"{label}/{task.runtime}-{task.precision}/{task.scenario}/batch-{task.batch}"
        f"/threads-{task.threads}{streams}",
        _NAME,
    )


def text(judged: Judged) -> str:
    """Return the figures of the new side."""
    found = {benchmark(p.now.task): _measures(p.now) for p in judged.verdict.pairs}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _measures(m: Measurement) -> dict[str, dict[str, float]]:
    return {
        _MEASURES.get(f.name, f.name.replace(" ", "-")): _metric(f, f.value)
        for f in figures(m)
        if f.value is not None
    }


def _metric(f: Figure, value: float) -> dict[str, float]:
    out = {"value": value}
    if f.low is not None and f.high is not None:
        out |= {"lower_value": f.low, "upper_value": f.high}
    return out
