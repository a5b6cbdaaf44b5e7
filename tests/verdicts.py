"""Measurements made by hand, for the tests of comparing, of formats and of files."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st

from mint_deploy.artifacts import (
    LayerTime,
    Machine,
    MachineState,
    Measurement,
    TaskSpec,
    TensorSpec,
)

MACHINE = Machine(
    hostname="board", system="Linux", cpu="Cortex-A78AE", cores=6, memory_bytes=8 << 30,
    python="3.10.12", versions={"numpy": "1.26", "onnxruntime": "1.19"}, governor="performance",
)  # fmt: skip
TASK = TaskSpec(
    label="model", sha256="aa", runtime="onnxruntime", precision="fp32", scenario="single_stream",
    batch=1, threads=1, inputs=(TensorSpec(name="input", shape=(1, 3, 32, 32)),),
    flags=(("graph", "all"), ("spinning", "off")),
)  # fmt: skip
FIGURES = {
    "file_bytes": 100_000.0, "params": 20_000.0, "macs": 4_000_000.0, "weight_bytes": 80_000.0,
    "peak_activation_bytes": 30_000.0,
}  # fmt: skip
#: a limit on every figure that measurements have
SOME_LIMITS = {
    "latency": "+5%", "p90": "+5%", "p95": "+5%", "p99": "+5%", "throughput": "-5%",
    "memory": "+2%", "gpu memory": "+2%", "energy": "+5%", "size": "+0%", "params": "+0%",
    "macs": "+0%", "weights": "+0%", "activations": "+0%",
}  # fmt: skip


def made(medians, *, task=TASK, machine=MACHINE, **changes):
    """A measurement whose restarts have these medians, nine equal calls each."""
    base = Measurement(
        task=task, machine=machine, restarts_ns=tuple((int(m),) * 9 for m in medians),
        warmup_ns=(), peak_rss_bytes=60 << 20, import_rss_bytes=50 << 20, load_ns=(),
        converged=True, started="2026-01-01T00:00:00+00:00", figures=FIGURES,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def around(middle, spread=0.002, n=5):
    return [middle * (1 + spread * step) for step in np.linspace(-1, 1, n)]


def of(middle=1e6, *, spread=0.002, **task):
    """A measurement of a task that differs from TASK in what is named."""
    changed = dataclasses.replace(TASK, **task)
    if changed.batch != TASK.batch and "inputs" not in task:
        shape = (changed.batch, 3, 32, 32)
        changed = dataclasses.replace(changed, inputs=(TensorSpec(name="input", shape=shape),))
    return made(around(middle, spread), task=changed)


def turns(a, b, **changes):
    """Two measurements of one interleaved run, dense and slim."""
    dense = made(a, task=dataclasses.replace(TASK, label="dense"), partner="slim")
    slim = made(b, task=dataclasses.replace(TASK, label="slim"), partner="dense", **changes)
    return dense, slim


# ---------------------------------------------------------------- any measurement

#: text as it may come from strangers: markup, commands, ends of lines, control characters
NASTY = (
    "", "slim", "a b", " ", "=1+1", "<b>&amp;", "a|b`c", "::error::x", "##[error]x", "x\n::warning::y", "\u2028",
    "\x00\x1b[31m", "\ufffe\uffff", "\u202e", "]]>", "%0A%25", "é×漢", "@team http://x", "-->", '"\'', "🙂" * 9,
)  # fmt: skip
texts = st.sampled_from(NASTY)
_ns = st.integers(0, 10**11)
_counts = st.integers(1, 64)
_numbers = st.floats(0, 1e12, allow_nan=False)


def _maybe(values):
    return st.none() | values


labels = texts | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tasks = st.builds(
    TaskSpec,
    label=labels, sha256=texts, runtime=texts, precision=texts, scenario=texts, batch=_counts,
    threads=_counts, streams=_counts,
    inputs=st.lists(
        st.builds(TensorSpec, name=texts, shape=st.lists(st.integers(-1, 512), max_size=4).map(tuple)),
        max_size=2,
    ).map(tuple),
    flags=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
)  # fmt: skip
machines = st.builds(
    Machine,
    hostname=texts, system=texts, cpu=texts, cores=_numbers, memory_bytes=_ns, python=texts,
    versions=st.dictionaries(texts, texts, max_size=3), board=_maybe(texts), gpu=_maybe(texts),
    governor=_maybe(texts), frequency_mhz=_maybe(_numbers), load_average=_maybe(_numbers),
    virtualization=_maybe(texts), power_mode=_maybe(texts),
    details=st.dictionaries(texts, texts | _numbers | st.none() | st.booleans(), max_size=3),
)  # fmt: skip


@st.composite
def _restarts(draw):
    """Latencies, and the blocks that they were taken in where those are known."""
    restarts = draw(st.lists(st.lists(_ns, max_size=6).map(tuple), max_size=4).map(tuple))
    known = draw(st.booleans())
    halves = [(len(ns) // 2, len(ns) - len(ns) // 2) for ns in restarts] if known else []
    return restarts, tuple(tuple(n for n in half if n) for half in halves)


def _with_blocks(m, taken):
    restarts, blocks = taken
    return dataclasses.replace(m, restarts_ns=restarts, blocks=blocks)


_plain = st.builds(
    Measurement,
    task=tasks, machine=machines,
    restarts_ns=st.just(()), sequential=st.booleans(),
    warmup_ns=st.lists(_ns, max_size=4).map(tuple), load_ns=st.lists(_ns, max_size=4).map(tuple),
    peak_rss_bytes=_maybe(_ns), import_rss_bytes=_maybe(_ns), converged=st.booleans(), started=texts,
    partner=_maybe(texts), energy_mj=_maybe(_numbers), gpu_bytes=_maybe(_ns),
    figures=st.dictionaries(st.sampled_from(sorted(FIGURES)) | texts, _numbers, max_size=4),
    layers=st.lists(
        st.builds(
            LayerTime, name=texts, op=texts, ns=_numbers, calls=_ns, layer=_maybe(texts),
            width=_maybe(_counts),
        ),
        max_size=2,
    ).map(tuple),
    states=st.lists(
        st.builds(MachineState, load_average=_maybe(_numbers), steal=_maybe(_numbers), throttled=_maybe(_counts)),
        max_size=2,
    ).map(tuple),
    nulls=st.dictionaries(st.sampled_from(["energy_mj", "macs"]) | texts, texts, max_size=3),
    doubts=st.lists(texts, max_size=3).map(tuple),
)  # fmt: skip
measurements = st.builds(_with_blocks, _plain, _restarts())
