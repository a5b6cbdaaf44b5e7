"""Three states: what gates hard, what needs equal machines, what an interval leaves open."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdicts import FIGURES, MACHINE, TASK, around, made, of, turns

from mint_deploy.artifacts import TensorSpec
from mint_deploy.compare import Verdict, compare, parse_limit
from mint_deploy.errors import ConfigError, DataError
from mint_deploy.limits import GAUGES, Limit, centre, per_restart

BASE = made(around(1e6))


def only(verdict: Verdict):
    (check,) = verdict.checks
    return check


# ---------------------------------------------------------------- latency


@pytest.mark.parametrize(
    ("now", "state"),
    [(1.00e6, "pass"), (1.04e6, "pass"), (1.06e6, "fail"), (2e6, "fail"), (0.5e6, "pass")],
)
def test_clear_cases_pass_and_fail(now, state):
    check = only(compare(BASE, made(around(now)), {"latency": "+5%"}))
    assert check.state == state
    assert check.low < check.now < check.high
    assert check.now == pytest.approx(now, rel=1e-4)
    assert check.unit == "ns"
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
    assert (check.baseline, check.now) == (pytest.approx(1e6), pytest.approx(2e6))


def test_more_confidence_is_a_wider_interval():
    now = made(around(1.05e6, spread=0.02))
    widths = []
    for confidence in (0.5, 0.95, 0.999):
        check = only(compare(BASE, now, confidence=confidence))
        widths.append(check.high - check.low)
    assert widths == sorted(widths)
    with pytest.raises(ConfigError, match="confidence is 95"):
        compare(BASE, now, confidence=95)


def test_restarts_of_one_interleaved_run_are_paired():
    """The machine's slow restarts slow both: paired, the ratio is known well; apart, it is not."""
    weather = np.array([1.0, 1.3, 0.8, 1.6, 1.1]) * 1e6
    dense, slim = turns(weather, weather * 0.9 * np.array([1.001, 1.0, 0.999, 1.0, 1.0]))
    assert only(compare(dense, slim, {"latency": "-5%"})).state == "pass"
    for apart in (
        dataclasses.replace(slim, started="2026-01-02T00:00:00+00:00"),
        dataclasses.replace(slim, partner="another"),
        dataclasses.replace(slim, restarts_ns=slim.restarts_ns[:-1]),
    ):
        assert only(compare(dense, apart, {"latency": "-5%"})).state == "inconclusive"


def test_blocks_that_are_neighbours_in_time_are_held_against_each_other():
    """The machine halves its speed in the middle of every restart, for A one block earlier than for B."""
    slow = [(1,) * fast + (2,) * (8 - fast) for fast in (4, 5, 3, 4, 3)]
    blocks = ((9,) * 8,) * 5

    def taken(middle, pace):
        ns = tuple(tuple(int(middle * v) for v in restart for _ in range(9)) for restart in pace)
        return {"restarts_ns": ns, "blocks": blocks}

    dense, slim = turns(around(1), around(1))
    late = [(*restart[1:], 2) for restart in slow]
    dense = dataclasses.replace(dense, **taken(1e6, slow))
    slim = dataclasses.replace(slim, **taken(1.2e6, late))
    check = only(compare(dense, slim, {"latency": "+5%"}))
    assert check.state == "fail"
    assert check.now / check.baseline == pytest.approx(1.2)
    assert only(compare(dense, slim, {"throughput": "-50%"})).state == "pass"
    apart = only(compare(*(dataclasses.replace(m, blocks=()) for m in (dense, slim))))
    assert apart.now / apart.baseline > 1.3
    assert apart.high - apart.low > 100 * (check.high - check.low)


@pytest.mark.parametrize("name", ["latency", "throughput"])
@pytest.mark.parametrize("paired", [True, False])
def test_restarts_that_were_added_until_it_was_enough_have_a_wider_interval(name, paired):
    limit = {name: "+5%" if name == "latency" else "-5%"}
    widths = []
    for sequential in (False, True):
        a, b = turns(around(1e6, 0.01), around(1.1e6, 0.02), sequential=sequential)
        if not paired:
            b = dataclasses.replace(b, partner=None)
        check = only(compare(a, b, limit))
        widths.append(check.high - check.low)
    assert widths[1] > 1.3 * widths[0]


def test_an_absolute_limit_of_the_latency_is_refused():
    with pytest.raises(ConfigError, match=r"expected a percentage such as \+5%"):
        compare(BASE, BASE, {"latency": "+3"})
    with pytest.raises(ConfigError, match=r"expected a percentage such as -5%"):
        compare(BASE, BASE, {"throughput": "-3"})


def test_a_measurement_without_a_latency_is_inconclusive():
    empty = made(around(1e6), restarts_ns=())
    assert "without a latency" in only(compare(empty, BASE)).reason
    zero = made([0, 0, 0])
    check = only(compare(BASE, zero))
    assert check.state == "inconclusive"
    assert "too coarse" in check.reason


@given(
    st.floats(0.5, 2.0), st.floats(0.0005, 0.05), st.integers(-60, 60), st.integers(0, 60),
    st.booleans(),
)  # fmt: skip
def test_a_state_is_what_its_interval_says(ratio, spread, percent, looser, paired):
    """And a looser limit never makes it worse."""
    order = ("pass", "inconclusive", "fail")
    if paired:
        a, b = turns(around(1e6, 0.3), np.array(around(1e6, 0.3)) * np.array(around(ratio, spread)))
    else:
        a, b = BASE, made(around(1e6 * ratio, spread))
    check = only(compare(a, b, {"latency": f"{percent:+d}%"}))
    edge = check.baseline * (1 + percent / 100)
    expected = "pass" if check.high <= edge else "fail" if check.low > edge else "inconclusive"
    assert check.state == expected
    wider = only(compare(a, b, {"latency": f"{percent + looser:+d}%"}))
    assert order.index(wider.state) <= order.index(check.state)


# ---------------------------------------------------------------- percentiles and throughput


def _calls(rng, middle, tail, n=700):
    ns = rng.normal(middle, 0.002 * middle, n)
    ns[::50] = tail  # two in a hundred
    return tuple(int(v) for v in ns)


def test_a_slow_tail_breaks_p99_and_not_the_median():
    rng = np.random.default_rng(1)
    before = made([1], restarts_ns=tuple(_calls(rng, 1e6, 1.1e6) for _ in range(5)))
    after = made([1], restarts_ns=tuple(_calls(rng, 1e6, 2e6) for _ in range(5)))
    latency, p90, p99 = compare(
        before, after, {"latency": "+2%", "p90": "+2%", "p99": "+20%"}
    ).checks
    assert (latency.state, p90.state, p99.state) == ("pass", "pass", "fail")
    assert p99.now == pytest.approx(2e6, rel=0.01)


def test_a_percentile_of_too_few_calls_is_inconclusive_and_says_how_many_it_needs():
    check = only(compare(BASE, BASE, {"p99": "+5%"}))
    assert check.state == "inconclusive"
    assert "9 samples; p99 needs 662" in check.reason


@pytest.mark.parametrize(("now", "state"), [(1.04e6, "pass"), (1.1e6, "fail"), (0.5e6, "pass")])
def test_throughput_has_a_least(now, state):
    check = only(compare(BASE, made(around(now)), {"throughput": "-5%"}))
    assert check.state == state
    assert check.now == pytest.approx(1e9 / now, rel=1e-3)
    assert check.low < check.now < check.high
    if state == "fail":
        assert "at least -5% was allowed" in check.reason


def test_throughput_that_straddles_its_least():
    check = only(compare(BASE, made(around(1.05e6, 0.05)), {"throughput": "-5%"}))
    assert check.state == "inconclusive"


def test_throughput_counts_the_samples_of_a_call():
    task = dataclasses.replace(TASK, batch=8, streams=4, scenario="multi_stream")
    values, why = per_restart(made([1e6, 2e6], task=task), "throughput")
    assert why == ""
    assert values == pytest.approx([8 * 4 * 1e3, 8 * 4 * 500])


def test_the_centre_lies_in_the_middle_of_ratios():
    assert centre([1.0, 4.0]) == pytest.approx(2.0)


# ---------------------------------------------------------------- machines


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
    other = made(
        around(2e6), machine=dataclasses.replace(MACHINE, **changes),
        figures={**FIGURES, "file_bytes": 100_001.0}, energy_mj=4.0, gpu_bytes=7,
    )  # fmt: skip
    base = dataclasses.replace(BASE, energy_mj=3.0, gpu_bytes=7)
    clocks = ("latency", "throughput", "memory", "gpu memory", "energy")
    limits = {**dict.fromkeys(clocks, "+5%"), "size": "+0%"}
    verdict = compare(base, other, limits)
    for check in verdict.checks[:-1]:
        assert check.state == "inconclusive", check.name
        assert named in check.reason
        assert check.now is not None
        assert check.low is None
    assert verdict.checks[-1].state == "fail"  # a deterministic figure gates on any machine
    assert verdict.state == "fail"


def test_load_and_frequency_of_the_moment_do_not_make_another_machine():
    other = dataclasses.replace(MACHINE, load_average=3.0, frequency_mhz=1500.0)
    assert compare(BASE, made(around(1e6), machine=other)).state == "pass"


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch": 8}, "batch is 1 and 8"),
        ({"threads": 2}, "threads is 1 and 2"),
        ({"streams": 4}, "streams is 1 and 4"),
        ({"runtime": "pytorch"}, "runtime is 'onnxruntime' and 'pytorch'"),
        ({"precision": "fp16"}, "precision is"),
        ({"scenario": "offline"}, "scenario is"),
        ({"inputs": (TensorSpec(name="input", shape=(1, 3, 64, 64)),)},
         "inputs is {'input': '1x3x32x32 float32'} and {'input': '1x3x64x64 float32'}"),
        ({"flags": (("graph", "all"), ("spinning", "on"))}, "flag 'spinning' is 'off' and 'on'"),
        ({"flags": (("graph", "all"),)}, "flag 'spinning' is 'off' and None"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("several", [False, True])
def test_unequal_tasks_are_refused_and_the_field_is_named(changes, named, several):
    other = made(around(1e6), task=dataclasses.replace(TASK, **changes))
    with pytest.raises(ConfigError, match="not of one task") as caught:
        compare([BASE] if several else BASE, [other] if several else other)
    assert named in str(caught.value)


def test_another_file_under_another_label_is_what_is_compared():
    other = made(around(1e6), task=dataclasses.replace(TASK, label="slim", sha256="bb"))
    assert compare(BASE, other).state == "pass"
    check = only(compare([BASE], [other]))
    assert check.subject.startswith("slim against model, onnxruntime fp32, single_stream, batch 1")


# ---------------------------------------------------------------- several measurements


def test_measurements_are_paired_by_label_and_task_in_any_order():
    base = [of(2e6, label="dense"), of(1e6, label="slim"), of(6e6, label="slim", batch=8)]
    now = [of(6e6, label="slim", batch=8), of(1.2e6, label="slim"), of(2e6, label="dense")]
    verdict = compare(base, now, {"latency": "+5%", "size": "+0%"})
    assert [(c.subject.split(", ")[0], c.name, c.state) for c in verdict.checks] == [
        ("dense", "latency", "pass"), ("dense", "size", "pass"),
        ("slim", "latency", "fail"), ("slim", "size", "pass"),
        ("slim", "latency", "pass"), ("slim", "size", "pass"),
    ]  # fmt: skip
    assert [c.subject for c in verdict.checks][-1].endswith("batch 8, 1 thread")
    assert len({(c.subject, c.name) for c in verdict.checks}) == 6


def test_what_was_not_measured_again_is_inconclusive_and_what_is_new_is_named():
    base = [of(label="dense"), of(label="slim")]
    now = [of(label="slim"), of(label="slim", batch=8)]
    verdict = compare(base, now)
    latency, missing = verdict.checks
    assert latency.state == "pass"
    assert (missing.name, missing.state) == ("measured", "inconclusive")
    assert missing.subject.startswith("dense")
    assert verdict.state == "inconclusive"
    (note,) = verdict.notes
    assert "slim" in note
    assert "batch 8" in note


def test_one_setting_of_several_measurements_that_differs_is_refused():
    base = [of(label="dense"), of(label="slim")]
    now = [of(label="dense"), of(label="slim", precision="fp16")]
    with pytest.raises(ConfigError, match="precision is 'fp32' and 'fp16'"):
        compare(base, now)


def test_two_runtimes_in_one_file_do_not_get_in_each_others_way():
    both = [of(label="slim"), of(label="slim", runtime="openvino")]
    assert [c.state for c in compare(both, both).checks] == ["pass", "pass"]
    alone = compare(both, [of(label="slim", runtime="openvino")])
    assert [(c.name, c.state) for c in alone.checks] == [
        ("latency", "pass"), ("measured", "inconclusive"),
    ]  # fmt: skip


def test_nothing_belongs_together():
    with pytest.raises(ConfigError, match="measured a, b, the new side c") as caught:
        compare([of(label="a"), of(label="b")], [of(label="c")])
    assert "base.jsonl#LABEL" in str(caught.value)
    with pytest.raises(ConfigError, match="threads is 1 and 2"):
        compare([of(label="a"), of(label="b")], [of(label="a", threads=2), of(label="c")])


def test_the_nearest_measurement_says_which_field_differs():
    base = [of(label="slim", batch=1), of(label="slim", batch=8)]
    with pytest.raises(ConfigError, match="threads is 1 and 4"):
        compare(base, [of(label="slim", batch=8, threads=4)])


def test_one_task_twice_on_a_side_is_refused():
    for sides in (([of(), of(2e6)], [of()]), ([of()], [of(), of(2e6)])):
        with pytest.raises(ConfigError, match="more than once"):
            compare(*sides)


def test_a_side_without_measurements_is_refused():
    with pytest.raises(DataError, match="the new side holds no measurement"):
        compare([of()], [])


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_every_measurement_is_paired_or_named_once(order, gone, fresh):
    every = [of(label=label, batch=batch) for label in ("a", "b") for batch in (1, 2, 4)]
    base = [m for i, m in enumerate(every) if i not in fresh]
    now = [every[i] for i in order if i not in gone]
    both = {i for i in range(6) if i not in gone and i not in fresh}
    if not both or len({m.task.label for m in base}) == len({m.task.label for m in now}) == 1:
        return
    verdict = compare(base, now)
    paired = [c for c in verdict.checks if c.name == "latency"]
    assert len(paired) == len(both)
    assert all(p.baseline.task == p.now.task for p in verdict.pairs)
    assert len(verdict.checks) - len(paired) == len(base) - len(both)
    assert len(verdict.notes) == len(now) - len(both)


def test_doubts_of_both_sides_are_told_once():
    base = dataclasses.replace(BASE, doubts=("clocks move",))
    now = dataclasses.replace(BASE, doubts=("clocks move", "drift"))
    assert compare(base, now, {"latency": "+5%", "size": "+5%"}).doubts == (
        "baseline, model: clocks move", "now, model: clocks move", "now, model: drift",
    )  # fmt: skip


# ---------------------------------------------------------------- figures without an interval


def test_memory_is_taken_above_the_import_baseline():
    more = made(around(1e6), peak_rss_bytes=61 << 20)
    check = only(compare(BASE, more, {"memory": "+5%"}))
    assert (check.state, check.baseline, check.now) == ("fail", 10 << 20, 11 << 20)
    assert compare(BASE, more, {"memory": "+10%"}).state == "pass"


@pytest.mark.parametrize(
    ("name", "field"),
    [("memory", "peak_rss_bytes"), ("energy", "energy_mj"), ("gpu memory", "gpu_bytes")],
)
def test_what_was_not_measured_is_inconclusive_with_its_reason(name, field):
    none = made(around(1e6), **{field: None}, nulls={field: "no counter here"})
    check = only(compare(none, BASE, {name: "+5%"}))
    assert check.state == "inconclusive"
    assert "no counter here" in check.reason


def test_energy_and_memory_of_the_gpu_are_gated():
    a = dataclasses.replace(BASE, energy_mj=3.0, gpu_bytes=100)
    b = dataclasses.replace(BASE, energy_mj=3.3, gpu_bytes=101)
    energy, memory = compare(a, b, {"energy": "+5%", "gpu memory": "+5%"}).checks
    assert (energy.state, energy.unit) == ("fail", "mJ")
    assert "from 3 to 3.3" in energy.reason
    assert (memory.state, memory.unit) == ("pass", "bytes")


@pytest.mark.parametrize(
    ("name", "key"), [(name, g.key) for name, g in GAUGES.items() if g.key]
)  # fmt: skip
def test_deterministic_figures_gate_hard_on_any_machine(name, key):
    elsewhere = dataclasses.replace(MACHINE, hostname="elsewhere", cores=64)
    same = made([1e6], machine=elsewhere)
    more = dataclasses.replace(same, figures={**FIGURES, key: FIGURES[key] + 1})
    assert compare(BASE, same, {name: "+0%"}).state == "pass"
    check = only(compare(BASE, more, {name: "+0%"}))
    assert check.state == "fail"
    assert f"{FIGURES[key]:,.0f} to {FIGURES[key] + 1:,.0f}" in check.reason
    assert compare(BASE, more, {name: "+1"}).state == "pass"
    assert compare(more, BASE, {name: "+0%"}).state == "pass"


def test_a_figure_that_nobody_recorded_is_refused_and_one_with_a_reason_is_inconclusive():
    old = dataclasses.replace(BASE, figures={})
    for sides in ((old, BASE), (BASE, old), (old, old)):
        with pytest.raises(ConfigError, match=r"without its macs \(macs\); measure it anew"):
            compare(*sides, {"macs": "+0%"})
    unknown = dataclasses.replace(old, nulls={"macs": "the graph has an Einsum"})
    check = only(compare(BASE, unknown, {"macs": "+0%"}))
    assert (check.state, check.baseline, check.now) == ("inconclusive", FIGURES["macs"], None)
    assert "Einsum" in check.reason


def test_figures_of_the_caller_gate_hard_relative_or_absolute():
    figures = {"kernels": (1000, 1003), "accuracy drop": (0.0, 0.4)}
    assert compare(BASE, BASE, {"kernels": "+3"}, figures=figures).state == "pass"
    assert compare(BASE, BASE, {"kernels": "+2"}, figures=figures).state == "fail"
    check = only(compare(BASE, BASE, {"accuracy drop": "+0.5"}, figures=figures))
    assert (check.state, check.unit, check.subject) == ("pass", "points", "")
    with pytest.raises(ConfigError, match=r"known: latency, .*, accuracy drop, kernels"):
        compare(BASE, BASE, {"sise": "+0%"}, figures=figures)
    with pytest.raises(ConfigError, match="finite"):
        compare(BASE, BASE, {"kernels": "+2"}, figures={"kernels": (1.0, float("nan"))})


def test_a_figure_of_the_caller_is_held_once_whatever_the_number_of_pairs():
    many = [of(label="dense"), of(label="slim")]
    verdict = compare(many, many, {"accuracy drop": "+0"}, figures={"accuracy drop": (0.0, 1.0)})
    assert only(verdict).state == "fail"


# ---------------------------------------------------------------- the whole


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


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("text", "most"),
    [("+5%", 105), ("5%", 105), (" +2.5 % ", 102.5), ("-10%", 90), ("+0%", 100), ("3", 103)],
)
def test_limits_are_read(text, most):
    assert parse_limit(text).edge(100) == pytest.approx(most)


@pytest.mark.parametrize(
    "text",
    ["", "five", "5%%", "-100%", "+5ms", "1e3", "nan%", "--5%", "٥%", "9" * 400, "+" + "9" * 400],
)
def test_limits_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="limit"):
        parse_limit(text)


@given(st.integers(1, 10**12), st.integers(-9990, 100_000))
def test_exactly_at_the_limit_is_kept(base, per_mille_of_ten):
    """Whatever floating point makes of it: 1000 and +0.7 % allow 1007."""
    edge = base * (1 + Fraction(per_mille_of_ten, 10_000))
    limit = parse_limit(f"{per_mille_of_ten / 100:+.2f}%")
    if edge.denominator == 1:
        assert limit.holds(base, int(edge))
        assert limit.holds(base, int(edge), larger=True)
    beyond = math.floor(edge) + 1 + int(edge) // 10**9
    assert not limit.holds(base, beyond)
    assert limit.holds(base, beyond, larger=True)


@given(st.integers(-99, 1000), st.booleans())
def test_a_limit_is_written_as_it_is_read(value, relative):
    limit = Limit(value=value / 100 if relative else float(value), relative=relative)
    again = parse_limit(str(limit))
    assert again.relative == relative
    assert again.value == pytest.approx(limit.value)


# ---------------------------------------------------------------- a sweep beside a latency


def test_a_short_sweep_beside_a_latency_is_held_to_throughput_alone():
    sweep = dataclasses.replace(TASK, scenario="offline")
    one = [made(around(1e6)), made([2e6], task=sweep)]
    two = [made(around(1e6)), made([3e6], task=sweep)]
    verdict = compare(one, two, {"latency": "+5%"})
    assert verdict.state == "pass"
    assert [c.name for c in verdict.checks] == ["latency"]
    # either side alone may have swept: nobody asked for it
    assert compare(one, two[:1], {"latency": "+5%"}).state == "pass"
    assert compare(one[:1], two, {"latency": "+5%"}).notes == ()
    asked = compare(one, two, {"latency": "+5%", "throughput": "-5%"})
    assert {(c.name, c.state) for c in asked.checks if "offline" in c.subject} == {
        ("throughput", "inconclusive")
    }
    assert compare(one, two[:1], {"throughput": "-5%"}).state == "inconclusive"


def test_a_sweep_that_stands_alone_is_judged_as_it_is():
    sweep = dataclasses.replace(TASK, scenario="offline")
    verdict = compare(
        made(around(1e6), task=sweep), made(around(2e6), task=sweep), {"latency": "+5%"}
    )
    assert verdict.state == "fail"
