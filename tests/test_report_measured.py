"""Measurements as a section of the report: who is picked for what, and what the raw latencies support."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import report_measured as made
import report_runs as runs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mint_deploy import files, statistics, stopping
from mint_deploy.artifacts import Comparison, LayerTime
from mint_deploy.bench import Throughput
from mint_deploy.report import headline, layertime, measured, merging, resources
from mint_deploy.report.doubted import advice, doubts, parts
from mint_deploy.report.offline import sweeps
from mint_deploy.report.pictures import leading, tones

latencies = st.lists(st.integers(min_value=1, max_value=10**9), min_size=1, max_size=400)


@pytest.fixture(scope="module")
def everything():
    return made.everything()


# ---------------------------------------------------------------- who is picked for what


@settings(max_examples=10, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
def test_latency_is_single_stream_and_the_knee_is_offline_in_any_order(seed):
    found = made.everything()
    random.Random(seed).shuffle(found)
    section = measured.section(found, [made.comparison()])
    assert {r["scenario"] for r in leading(section)} == {"single_stream"}
    assert {r["label"] for r in leading(section)} == {"dense", "slim"}
    assert {r["scenario"] for r in headline.main_runs(section).values()} == {"single_stream"}
    assert {s["label"]: [p["batch"] for p in s["points"]] for s in section["sweeps"]} == {
        label: list(made.BATCHES) for label in made.MODELS
    }
    for run in section["runs"]:
        assert (run["shape"] is None) == (run["scenario"] == "offline")


def test_a_sweep_alone_has_no_latency_and_a_latency_alone_no_sweep():
    swept = measured.section(made.swept("dense"))
    assert leading(swept) == []
    assert headline.main_runs(swept, ("dense", "dense")) == {}
    assert headline.of_measurements(swept)[0]["reason"].startswith("no single_stream measurement")
    assert measured.section([made.single("dense")])["sweeps"] == []


def test_the_knee_and_the_rates_are_the_harness_own(everything):
    for sweep in sweeps(everything):
        own = Throughput(measurements=tuple(made.swept(sweep["label"])))
        assert sweep["knee"] == own.knee == {"dense": 16, "slim": 8}[sweep["label"]]
        assert sweep["knee_range"] == own.knee_range
        assert {p["batch"]: p["per_s"] for p in sweep["points"]} == own.samples_per_s
        for p in sweep["points"]:
            assert p["low"] <= p["batch"] / p["median_ns"] * 1e9 <= p["high"]


def test_a_batch_that_was_not_measured_keeps_its_reason_and_the_last_of_two_counts():
    first, *rest = made.swept("dense", (1, 4))
    why = "not enough memory for 64 samples"
    slow = replace(first, restarts_ns=tuple(tuple(2 * v for v in r) for r in first.restarts_ns))
    noted = replace(rest[0], nulls={**rest[0].nulls, "batch 64": why})
    (sweep,) = sweeps([first, noted, slow])
    assert sweep["nulls"] == {"64": why}
    assert sweep["points"][0]["median_ns"] == pytest.approx(
        2 * np.median(first.restarts_ns), rel=0.01
    )
    assert sweeps([replace(first, restarts_ns=())]) == []


def test_colours_follow_the_label_and_the_first_is_what_others_are_held_against(everything):
    section = measured.section(everything)
    assert tones(section) == {"dense": "dense", "slim": "slim"}
    names = [
        replace(m, task=replace(m.task, label=n))
        for m, n in zip(everything * 2, "abcdef", strict=False)
    ]
    found = tones(measured.section(names))
    assert [found[n] for n in "abcd"] == ["dense", "slim", "control", "other"]
    assert len(found) == 6
    mixed = tones(measured.section([everything[0], names[0], names[1]]))
    assert mixed["dense"] == "dense"
    assert len(set(mixed.values())) == 3


# ---------------------------------------------------------------- intervals and ratios


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(min_value=0.5, max_value=2.0), min_size=2, max_size=12))
def test_the_interval_of_a_median_is_students_over_restarts(factors):
    restarts = tuple(tuple(round(1e7 * f) + i for i in (-3, 0, 3)) for f in factors)
    m = replace(runs.timed("dense", 1.0, calls=3), restarts_ns=restarts)
    span = measured.section([m])["runs"][0]["interval"]
    logs = np.log([statistics.median(r) for r in restarts])
    error = stats.sem(logs)
    low, high = (
        stats.t.interval(0.95, len(logs) - 1, logs.mean(), error)
        if error > 0
        else (logs[0], logs[0])
    )
    assert span["low"] == pytest.approx(math.exp(low), rel=1e-6)
    assert span["high"] == pytest.approx(math.exp(high), rel=1e-6)


def test_whoever_looked_before_stopping_gets_the_wider_interval():
    m = replace(runs.timed("dense", 1.0), restarts_ns=((90, 91), (100, 101), (111, 112), (97, 98)))
    once, looked = (
        measured.section([replace(m, sequential=looked)])["runs"][0]["interval"]
        for looked in (False, True)
    )
    own = stopping.interval([math.log(statistics.median(ns)) for ns in m.restarts_ns])
    assert (looked["low"], looked["high"]) == (own.low, own.high)
    assert looked["low"] < once["low"] < once["centre"] < once["high"] < looked["high"]


def test_one_restart_has_no_interval_and_says_why():
    m = replace(runs.timed("dense", 1.0), restarts_ns=((5, 6, 7),))
    span = measured.section([m])["runs"][0]["interval"]
    assert (span["low"], span["high"]) == (None, None)
    assert "one process restart" in span["reason"]
    none = measured.section([replace(m, restarts_ns=())])["runs"][0]
    assert none["interval"]["reason"] == none["median_ns"]["reason"] == "no latency was recorded"
    assert none["shape"] is None


def test_a_comparison_of_two_precisions_finds_its_task():
    found = [runs.timed("dense", 2.0), runs.timed("slim int8", 1.0)]
    found[1] = replace(found[1], task=replace(found[1].task, precision="int8"))
    one = Comparison(
        a="dense", b="slim int8", ratio=0.5, low=0.4, high=0.6, confidence=0.95, restarts=5
    )
    (row,) = measured.paired(found, [one])
    assert (row["batch"], row["scenario"]) == (1, "single_stream")
    assert len(row["each"]) == len(found[0].restarts_ns)


def test_each_comparison_belongs_to_its_task_and_shows_every_restart():
    found, compared = [], []
    for batch, ratio in ((1, 0.5), (8, 0.8)):
        a, b = (
            runs.timed(name, ms, batch=batch)
            for name, ms in (("a.onnx", 4.0), ("b.onnx", 4.0 * ratio))
        )
        found += [a, b]
        own = statistics.ratio_interval(statistics.log_ratios(a.restarts_ns, b.restarts_ns))
        compared.append(
            Comparison(
                a="a.onnx", b="b.onnx", ratio=own.ratio, low=own.low, high=own.high,
                confidence=0.95, restarts=5,
            )
        )  # fmt: skip
    rows = measured.paired(found, compared)
    assert [(r["a"], r["b"], r["batch"], r["scenario"]) for r in rows] == [
        ("a.onnx", "b.onnx", 1, "single_stream"), ("a.onnx", "b.onnx", 8, "single_stream"),
    ]  # fmt: skip
    for row in rows:
        assert len(row["each"]) == 5
        assert math.exp(np.mean(np.log(row["each"]))) == pytest.approx(row["speedup"])
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    lone = measured.paired([], compared)
    assert [(r["batch"], r["each"]) for r in lone] == [(None, []), (None, [])]


def test_slim_is_held_against_dense_whichever_way_it_was_compared(everything):
    there = made.comparison()
    back = replace(there, a="slim", b="dense", ratio=1 / 0.5783, low=1 / 0.5918, high=1 / 0.5651)
    (one,), (other,) = (measured.paired(everything, [c]) for c in (there, back))
    assert (other["a"], other["b"]) == ("dense", "slim")
    assert {k: v for k, v in one.items() if k != "each"} == pytest.approx(
        {k: v for k, v in other.items() if k != "each"}
    )
    assert one["each"] == other["each"]


# ---------------------------------------------------------------- the shape of a distribution


@given(latencies)
def test_a_shape_counts_every_call_once(samples):
    found = measured.shape(samples)
    assert sum(found["counts"]) + found["above"] == len(samples)
    assert found["low_ns"] == min(samples) <= found["high_ns"] <= max(samples)
    assert len(found["counts"]) == 1 or 8 <= len(found["counts"]) <= 56
    assert found["above"] == sum(v > found["high_ns"] for v in samples)


def test_a_hiccup_does_not_flatten_the_picture():
    quick = [100_000 + 10 * i for i in range(980)]
    found = measured.shape([*quick, *[4_000_000] * 20])  # the 99th percentile is a hiccup
    assert found["above"] == 20
    assert found["high_ns"] < 200_000
    near = measured.shape([*quick, *[115_000] * 20])
    assert near["above"] == 0


# ---------------------------------------------------------------- layers


def test_times_of_layers_are_sums_of_their_nodes(everything):
    run = measured.section(everything)["runs"][0]
    times = everything[0].layers
    conv1 = next(row for row in run["layers"] if row["name"] == "conv1")
    assert conv1["ns"] == sum(t.ns for t in times if t.layer == "conv1.weight")
    assert conv1["width"] == 16
    assert sum(o["ns"] for o in run["operators"]) == pytest.approx(sum(t.ns for t in times))
    assert [o["op"] for o in run["operators"]] == ["Conv", "Add", "Relu"]
    outside = sum(t.ns for t in times if t.layer is None) / sum(t.ns for t in times)
    assert layertime.outside(run["operators"]) == pytest.approx(outside)
    assert layertime.outside([]) == 0.0


def test_layers_are_joined_by_name_in_the_order_of_the_cut():
    def times(**ns):
        return layertime.layers(
            LayerTime(name=n, op="Conv", ns=v, calls=3, layer=n, width=8) for n, v in ns.items()
        )

    cut = [
        {"name": "b", "kind": "Conv2d", "before": 9, "after": 5},
        {"name": "a", "kind": "Conv2d", "before": 7, "after": 7},
    ]
    rows = layertime.joined(times(a=1.0, b=2.0, c=3.0), times(b=1.5), cut)
    assert [(r["name"], r["before"], r["after"], r["ns_before"], r["ns_after"]) for r in rows] == [
        ("b", 9, 5, 2.0, 1.5), ("a", 7, 7, 1.0, None),
    ]  # fmt: skip
    bare = layertime.joined(times(a=1.0), times(a=0.5, d=2.0))
    assert [(r["name"], r["before"], r["after"]) for r in bare] == [("a", 8, 8), ("d", None, 8)]


def test_missing_times_say_why(everything):
    why = "the runtime's profiler named no node"
    without = [replace(m, layers=(), nulls={**m.nulls, "layers": why}) for m in everything]
    assert resources.layers(measured.section(without)) == {"reason": why}
    old = [replace(m, layers=()) for m in everything]
    assert resources.layers(measured.section(old))["reason"] == layertime.NOT_MEASURED
    half = measured.section(
        [everything[0], replace(everything[1], layers=(), nulls={"layers": why})]
    )
    assert resources.layers(half)["missing"] == [("slim", why)]
    assert resources.layers({}) is None


# ---------------------------------------------------------------- doubts


@given(st.lists(st.text(max_size=40), max_size=8))
def test_merging_loses_no_sentence_and_takes_any_text(texts):
    found = merging.merged((text, str(i)) for i, text in enumerate(texts))
    assert sorted(int(i) for _, about in found for i in about) == list(range(len(texts)))
    if len(set(texts)) == 1:
        assert found[0][0] == texts[0]


@given(st.lists(st.integers(min_value=-99, max_value=99), min_size=1, max_size=6))
def test_numbers_become_a_range(values):
    ((text, _),) = merging.merged(
        (f"p90 drifts by {v:+d}% over 10% in v1.2.3", "x") for v in values
    )
    low, high = min(values), max(values)
    said = f"{low:+d}" if low == high else f"{low:+d} to {high:+d}"
    assert text == f"p90 drifts by {said}% over 10% in v1.2.3"


def test_a_sweep_doubts_itself_once_with_its_batches(everything):
    body = {"latency": {"done": True, **measured.section(everything, [made.comparison()])}}
    found = doubts(body)
    drift = next(d for d in found if "drifts" in d["text"])
    assert drift["text"].startswith("latency drifts by +6 to +9% from")
    assert drift["about"] == ["dense and slim (onnxruntime, offline, batch 1, 2, 4, 8, 16, 32)"]
    assert found.index(drift) == len(found) - 1  # latency before the sweep
    assert drift["advice"] == advice(drift["text"]) != ""


def test_a_doubt_that_ends_with_its_remedy_keeps_it():
    text = "clocks move (over 10%): CPU turbo is on; echo 1 | sudo tee no_turbo"
    m = replace(made.single("dense"), doubts=(text,), converged=False)
    found = doubts({"latency": {"done": True, **measured.section([m])}})
    assert [parts(d) for d in found] == [
        ("Clocks move (over 10%): CPU turbo is on", "echo 1 | sudo tee no_turbo"),
        (
            "Not converged: the time ran out before the median's interval was narrow",
            parts(found[1])[1],
        ),
    ]
    assert "measure for longer" in found[1]["advice"]
    assert advice("a sentence about nothing") == ""


# ---------------------------------------------------------------- what report.json holds


def test_the_section_is_plain_json_and_old_measurements_fit(everything):
    section = measured.section(everything, [made.comparison()])
    assert json.loads(json.dumps(files.encode(section), allow_nan=False)) == files.encode(section)
    old = measured.section(runs.timed(label, 2.0, calls=20) for label in ("dense", "slim"))
    assert old["runs"][0]["gpu_bytes"]["reason"]
    assert old["runs"][0]["states"] == []
    assert resources.states(old, {})["reason"]
    assert resources.memory(old)["rows"][0]["activations"] == "–"


def test_memory_keeps_the_import_baseline_apart(everything):
    found = resources.memory(measured.section(everything))
    dense = found["rows"][0]
    assert (dense["peak"], dense["imports"], dense["net"]) == ("97.0 MB", "72.5 MB", "24.5 MB")
    assert (dense["weights"], dense["activations"], dense["gpu"]) == ("3.41 MB", "262 kB", "–")
    numbers = [float(t) for t in re.findall(r">([\d.]+)</text>", found["ticks"])]
    assert numbers[0] == 0
    assert numbers[-1] >= 97  # the axis holds the largest peak
    assert found["reasons"] == [("GPU memory", "no NVIDIA driver on this machine")]
