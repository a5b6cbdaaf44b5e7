"""Three states: what gates hard, what needs equal machines, what an interval leaves open."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mint_deploy.artifacts import Machine, Measurement, TaskSpec, TensorSpec
from mint_deploy.compare import Verdict, compare, parse_limit
from mint_deploy.errors import ConfigError

MACHINE = Machine(
    hostname="board", system="Linux", cpu="Cortex-A78AE", cores=6, memory_bytes=8 << 30,
    python="3.10.12", versions={"numpy": "1.26", "onnxruntime": "1.19"}, governor="performance",
)  # fmt: skip
TASK = TaskSpec(
    label="model", sha256="aa", runtime="onnxruntime", precision="fp32", scenario="single_stream",
    batch=1, threads=1, inputs=(TensorSpec(name="input", shape=(1, 3, 32, 32)),),
    flags=(("graph", "all"), ("spinning", "off")),
)  # fmt: skip


def made(medians, *, task=TASK, machine=MACHINE, **changes):
    base = Measurement(
        task=task, machine=machine, restarts_ns=tuple((int(m),) * 9 for m in medians),
        warmup_ns=(), peak_rss_bytes=60 << 20, import_rss_bytes=50 << 20, load_ns=(),
        converged=True, started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def around(middle, spread=0.002, n=5):
    return [middle * (1 + spread * step) for step in np.linspace(-1, 1, n)]


def only(verdict: Verdict):
    (check,) = verdict.checks
    return check


BASE = made(around(1e6))


@pytest.mark.parametrize(
    ("now", "state"),
    [(1.00e6, "pass"), (1.04e6, "pass"), (1.06e6, "fail"), (2e6, "fail"), (0.5e6, "pass")],
)
def test_clear_cases_pass_and_fail(now, state):
    check = only(compare(BASE, made(around(now)), {"latency": "+5%"}))
    assert check.state == state
    assert check.low < check.now < check.high
    assert check.now == pytest.approx(now, rel=1e-4)
    assert (check.reason == "") == (state == "pass")


def test_an_interval_that_straddles_the_limit_is_inconclusive():
    check = only(compare(BASE, made(around(1.05e6, spread=0.05)), {"latency": "+5%"}))
    assert check.state == "inconclusive"
    assert "straddles +5%" in check.reason
    assert check.low < 1.05e6 < check.high


def test_an_improvement_can_be_demanded():
    assert compare(BASE, made(around(0.5e6)), {"latency": "-40%"}).state == "pass"
    assert compare(BASE, made(around(0.9e6)), {"latency": "-40%"}).state == "fail"


def test_the_default_limit_is_five_percent():
    assert only(compare(BASE, made(around(1.2e6)))).limit == "+5%"


def test_one_restart_has_no_interval_so_nothing_is_concluded():
    check = only(compare(made([1e6]), made([2e6]), {"latency": "+5%"}))
    assert check.state == "inconclusive"
    assert "needs at least 2" in check.reason
    assert (check.baseline, check.now) == (1e6, 2e6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hostname": "other"}, "hostname is 'board' and 'other'"),
        ({"governor": "schedutil"}, "governor is 'performance' and 'schedutil'"),
        ({"power_mode": "15W"}, "power_mode is None and '15W'"),
        ({"cores": 2}, "cores is 6 and 2"),
        ({"versions": {"numpy": "1.26", "onnxruntime": "1.20"}},
         "version of onnxruntime is '1.19' and '1.20'"),
        ({"versions": {"numpy": "1.26"}}, "version of onnxruntime is '1.19' and None"),
    ],
)  # fmt: skip
def test_clock_figures_of_unequal_machines_are_inconclusive_and_name_the_field(changes, named):
    other = made(around(2e6), machine=dataclasses.replace(MACHINE, **changes))
    verdict = compare(BASE, other, {"latency": "+5%", "memory": "+5%", "bytes": "+0%"},
                      figures={"bytes": (100, 101)})  # fmt: skip
    latency, memory, size = verdict.checks
    assert latency.state == memory.state == "inconclusive"
    assert named in latency.reason
    assert named in memory.reason
    assert size.state == "fail"  # a deterministic figure gates on any machine
    assert verdict.state == "fail"


def test_load_and_frequency_of_the_moment_do_not_make_another_machine():
    other = dataclasses.replace(MACHINE, load_average=3.0, frequency_mhz=1500.0)
    assert compare(BASE, made(around(1e6), machine=other)).state == "pass"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch": 8}, "batch is 1 and 8"),
        ({"threads": 2}, "threads is 1 and 2"),
        ({"runtime": "pytorch"}, "runtime is 'onnxruntime' and 'pytorch'"),
        ({"precision": "fp16"}, "precision is"),
        ({"scenario": "offline"}, "scenario is"),
        ({"inputs": (TensorSpec(name="input", shape=(1, 3, 64, 64)),)}, "inputs is"),
        ({"flags": (("graph", "all"), ("spinning", "on"))}, "flag 'spinning' is 'off' and 'on'"),
        ({"flags": (("graph", "all"),)}, "flag 'spinning' is 'off' and None"),
    ],
)
def test_unequal_tasks_are_refused_and_the_field_is_named(changes, named):
    other = made(around(1e6), task=dataclasses.replace(TASK, **changes))
    with pytest.raises(ConfigError, match="not of one task") as caught:
        compare(BASE, other)
    assert named in str(caught.value)


def test_another_file_under_another_label_is_what_is_compared():
    other = made(around(1e6), task=dataclasses.replace(TASK, label="slim", sha256="bb"))
    assert compare(BASE, other).state == "pass"


def _turns(a, b, **changes):
    """Two measurements of one interleaved run."""
    dense = made(a, task=dataclasses.replace(TASK, label="dense"), partner="slim")
    slim = made(b, task=dataclasses.replace(TASK, label="slim"), partner="dense", **changes)
    return dense, slim


def test_restarts_of_one_interleaved_run_are_paired():
    """The machine's slow restarts slow both: paired, the ratio is known well; apart, it is not."""
    weather = np.array([1.0, 1.3, 0.8, 1.6, 1.1]) * 1e6
    dense, slim = _turns(weather, weather * 0.9 * np.array([1.001, 1.0, 0.999, 1.0, 1.0]))
    assert only(compare(dense, slim, {"latency": "-5%"})).state == "pass"
    apart = dataclasses.replace(slim, started="2026-01-02T00:00:00+00:00")
    assert only(compare(dense, apart, {"latency": "-5%"})).state == "inconclusive"


def test_memory_is_taken_above_the_import_baseline():
    more = made(around(1e6), peak_rss_bytes=61 << 20)
    check = only(compare(BASE, more, {"memory": "+5%"}))
    assert (check.state, check.baseline, check.now) == ("fail", 10 << 20, 11 << 20)
    assert compare(BASE, more, {"memory": "+10%"}).state == "pass"


def test_memory_that_was_not_measured_is_inconclusive_with_its_reason():
    none = made(around(1e6), peak_rss_bytes=None, nulls={"peak_rss_bytes": "no /proc here"})
    check = only(compare(none, BASE, {"memory": "+5%"}))
    assert check.state == "inconclusive"
    assert "no /proc here" in check.reason


def test_figures_gate_hard_relative_or_absolute():
    figures = {"params": (1000, 1000), "macs": (1000, 1003)}
    limits = {"params": "+0%", "macs": "+3"}
    assert compare(BASE, BASE, limits, figures=figures).state == "pass"
    assert compare(BASE, BASE, {"macs": "+2"}, figures=figures).state == "fail"
    assert compare(BASE, BASE, {"macs": "+0%"}, figures=figures).checks[0].reason
    with pytest.raises(ConfigError, match="known: latency, memory, macs, params"):
        compare(BASE, BASE, {"sise": "+0%"}, figures=figures)
    with pytest.raises(ConfigError, match="finite"):
        compare(BASE, BASE, {"macs": "+2"}, figures={"macs": (1.0, float("nan"))})


@pytest.mark.parametrize(
    ("states", "whole", "code", "strict"),
    [
        ((), "pass", 0, 0),
        (("pass",), "pass", 0, 0),
        (("pass", "inconclusive"), "inconclusive", 0, 3),
        (("inconclusive", "fail", "pass"), "fail", 1, 1),
    ],
)
def test_the_worst_check_decides_and_the_exit_code_follows(states, whole, code, strict):
    check = only(compare(BASE, BASE))
    verdict = Verdict(checks=tuple(dataclasses.replace(check, state=s) for s in states))
    assert verdict.state == whole
    assert verdict.exit_code() == code
    assert verdict.exit_code(strict=True) == strict


@pytest.mark.parametrize(
    ("text", "most"),
    [("+5%", 105), ("5%", 105), (" +2.5 % ", 102.5), ("-10%", 90), ("+0%", 100), ("3", 103)],
)
def test_limits_are_read(text, most):
    assert parse_limit(text).most(100) == pytest.approx(most)


@pytest.mark.parametrize("text", ["", "five", "5%%", "-100%", "+5ms", "1e3", "nan%", "--5%"])
def test_limits_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="limit"):
        parse_limit(text)


def test_an_absolute_limit_of_the_latency_is_refused():
    with pytest.raises(ConfigError, match="expected a percentage"):
        compare(BASE, BASE, {"latency": "+3"})


def test_a_measurement_without_a_latency_is_inconclusive():
    empty = made(around(1e6), restarts_ns=())
    assert "without a latency" in only(compare(empty, BASE)).reason
