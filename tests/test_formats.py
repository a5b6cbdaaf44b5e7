"""What CI systems read: every format is valid, says the same, and takes names from strangers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from verdicts import (
    MACHINE,
    NASTY,
    SOME_LIMITS,
    TASK,
    around,
    labels,
    made,
    measurements,
    of,
    turns,
)

from mint_deploy.artifacts import Measurement
from mint_deploy.compare import Check, Verdict, compare
from mint_deploy.errors import UnknownName
from mint_deploy.report.formats import Judged, known, render
from mint_deploy.report.formats._figures import figures, number, rounded, significant
from mint_deploy.report.formats._text import amount, change
from mint_deploy.report.formats.bmf import benchmark
from mint_deploy.report.formats.csv import table
from mint_deploy.report.formats.markdown import text as markdown

FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])


def judged(a=None, b=None, limits=None, *, strict=False, **given) -> Judged:
    """What was judged: by default three checks, one of each state."""
    a = of() if a is None else a
    b = of(1.02e6) if b is None else b
    limits = limits or {"latency": "+5%", "throughput": "+5%", "p99": "+5%"}
    return Judged(
        verdict=compare(a, b, limits, **given),
        baseline="base.jsonl",
        now="now.jsonl",
        strict=strict,
    )


def many(count: int, *, state: str = "fail", name: str = "latency") -> Judged:
    """So many checks of one state."""
    checks = tuple(
        Check(name=name, state=state, limit="+5%", baseline=1e6, now=2e6, low=1.9e6, high=2.1e6,
              reason=f"reason {i}", unit="ns", subject=f"net{i}, batch 1")
        for i in range(count)
    )  # fmt: skip
    return Judged(verdict=Verdict(checks=checks), baseline="a", now="b")


#: verdicts as they come: whole, with reasons, of several networks, of strangers
SAMPLES = {
    "three states": judged(),
    "strict": judged(strict=True),
    "in turns": judged(*turns(around(1e6, 0.3), around(0.9e6, 0.3)), SOME_LIMITS),
    "two networks": judged([of(label="a"), of(label="b")], [of(label="a"), of(label="b")]),
    "several": judged([of(label="a"), of(label="b")], [of(label="b"), of(label="c")]),
    "nothing measured": judged(of(), dataclasses.replace(of(), restarts_ns=(), peak_rss_bytes=None),
                               {"latency": "+5%", "memory": "+5%"}),
    "no checks": Judged(verdict=Verdict(checks=()), baseline="a", now="b"),
    "accuracy": judged(limits={"accuracy drop": "+0.5"}, figures={"accuracy drop": (0.0, 0.7)}),
    "stranger": judged(of(label=">&<\"'|`\n::error::x ##[error]"),
                       dataclasses.replace(of(2e6, label="]]>\x00\ufffe"), doubts=("<b>", "a|b"))),
}  # fmt: skip


def test_the_formats_are_the_files_and_a_wrong_name_suggests_the_right_one():
    assert known() == [
        "bmf", "csv", "github-action", "github-action-bigger", "json", "junit", "markdown", "text",
    ]  # fmt: skip
    with pytest.raises(UnknownName, match="did you mean 'markdown'"):
        render("markdwon", judged())


@pytest.mark.parametrize("name", known())
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_format_says_everything_twice_the_same_and_ends_with_a_line(name, sample):
    text = render(name, SAMPLES[sample])
    assert text == render(name, SAMPLES[sample])
    assert text.endswith("\n") or (name, sample) == ("csv", "no checks")
    assert "\x00" not in text
    text.encode("utf-8")


def test_formats_need_no_torch():
    code = (
        "import sys\n"
        "from mint_deploy.report import formats\n"
        "for name in formats.known(): formats.render(name, formats.Judged("
        "verdict=formats.Verdict(checks=()), baseline='a', now='b'))\n"
        "print([m for m in ('torch', 'onnx', 'scipy', 'rich', 'typer') if m in sys.modules])\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- digits


@given(st.floats(1e-6, 1e15), st.floats(1e-9, 0.9), st.floats(1e-9, 0.9))
@example(1234567.0, 0.004, 0.004)
def test_a_figure_is_rounded_where_its_interval_begins(value, below, above):
    low, high = value * (1 - below), value * (1 + above)
    v, lo, hi = rounded(value, low, high)
    assert lo <= v <= hi
    half = (high - low) / 2
    place = 10.0 ** math.floor(math.log10(half))
    coarse = max(place, 10.0 ** (math.floor(math.log10(value)) - 5))
    for exact, printed in ((value, v), (low, lo), (high, hi)):
        assert abs(exact - printed) <= 0.5001 * coarse
    digits = number(v).replace(".", "").strip("0")
    assert len(digits) <= 6
    # at most two digits past the place where the interval begins
    assert math.isclose(v / (coarse / 10), round(v / (coarse / 10)), rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1234567.0, 1229000.0, 1240000.0), (1235000, 1229000, 1240000)),
        ((1234567.0, 1204000.0, 1265000.0), (1230000, 1200000, 1260000)),
        ((0.48765, 0.4812, 0.4941), (0.488, 0.481, 0.494)),
        ((5.0, 5.0, 5.0), (5.0, 5.0, 5.0)),
        ((3.0, 0.1, 90.0), (3, 0, 90)),
        ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)),
        ((1.0, 0.5, math.inf), (1.0, 0.5, math.inf)),
    ],
)
def test_rounded_examples(given, expected):
    assert rounded(*given) == expected


@given(st.floats(1e-12, 1e15))
def test_a_number_is_written_so_that_it_reads_back(value):
    for v in (value, significant(value)):
        text = number(v)
        assert re.fullmatch(r"\d+(\.\d+)?", text)
        assert float(text) == v
    assert significant(significant(value)) == significant(value)
    assert significant(value) == pytest.approx(value, rel=0.5001e-2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1.2e6, "ns"), r"1\.20 ms"),
        ((1.2e6, "ns", 1.193e6, 1.208e6), r"1\.200? ms \[1\.193? to 1\.2\d+\]"),
        ((12_582_912.0, "bytes"), r"12\.6 MB"),
        ((3.21, "mJ"), r"3\.21 mJ"),
        (
            (498.7, "samples/s", 480.0, 510.0),
            r"50\d samples/s \[480 to 510\]|499 samples/s \[480 to 510\]",
        ),
        ((0.4, "points"), r"0\.400 points"),
        ((None, "ns"), "–"),
    ],
)
def test_amounts(given, expected):
    assert re.fullmatch(expected, amount(*given))


def test_a_count_keeps_every_digit_and_a_change_those_that_hold():
    assert amount(123_456_789_012.0, "bytes", exact=True) == "123,456,789,012 bytes"
    (size,) = judged(
        of(), dataclasses.replace(of(), figures={"file_bytes": 100_001.0}), {"size": "+0%"}
    ).verdict.checks
    assert change(size) == "+0.001 %"
    (latency,) = compare(of(), of(1.1e6, spread=0.02)).checks
    assert re.fullmatch(r"\+(10|10\.\d) %", change(latency))
    assert change(dataclasses.replace(size, now=None)) == ""
    assert change(dataclasses.replace(size, now=size.baseline)) == "0 %"


# ---------------------------------------------------------------- figures


def found(m: Measurement):
    return {f.name: f for f in figures(m)}


def test_figures_stand_inside_of_their_interval_and_agree_with_compare():
    m = made(around(2e6, 0.02), energy_mj=3.21987)
    f = found(m)
    assert f["latency"].low < f["latency"].value < f["latency"].high
    (check,) = compare(of(), m).checks
    assert f["latency"].value == pytest.approx(check.now, rel=0.005)
    assert f["throughput"].value == pytest.approx(1e9 / check.now, rel=0.005)
    assert (f["memory"].value, f["import memory"].value) == (10 << 20, 50 << 20)
    assert f["energy"].value == 3.22
    assert (f["size"].value, f["macs"].value) == (100_000, 4_000_000)
    assert "p99 needs 662" in f["p99"].reason


def test_one_restart_gives_a_figure_without_an_interval():
    f = found(made([1_234_567]))
    assert (f["latency"].value, f["latency"].low) == (1_230_000, None)


def test_a_percentile_of_all_calls_stands_in_where_restarts_are_short():
    m = made([1], restarts_ns=tuple(tuple(range(1000 + r, 1020 + r)) for r in range(5)))
    f = found(m)
    assert f["p90"].value == 1020
    assert f["p90"].low is None
    assert "100 samples; p95 needs 130" in f["p95"].reason


@FEW
@given(measurements)
def test_every_figure_has_a_value_or_a_reason(m):
    for f in figures(m):
        assert (f.value is None) <= bool(f.reason) or f.reason in m.nulls.values(), f
        assert f.value is None or math.isfinite(f.value)
        if f.low is not None:
            assert f.low <= f.value <= f.high


# ---------------------------------------------------------------- JUnit


def valid(document: str) -> ET.Element:
    """Hold a document against the rules of both schemas in use, and what GitLab reads; return the suite."""
    root = ET.fromstring(document)  # noqa: S314  # our own document
    assert root.tag == "testsuites"
    assert root.attrib == {}  # Ant's schema has no attribute there
    (suite,) = root
    assert suite.tag == "testsuite"
    a = suite.attrib
    assert set(a) == {
        "name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", a["timestamp"])
    for name in ("name", "hostname", "package"):
        assert a[name] == " ".join(a[name].split()) != ""  # xs:token, at least one letter
    for name in ("tests", "failures", "errors", "skipped", "id"):
        assert re.fullmatch(r"\d+", a[name])
    assert re.fullmatch(r"\d+(\.\d+)?", a["time"])
    first, *cases, out, err = suite
    assert first.tag == "properties"
    assert all(set(p.attrib) == {"name", "value"} and p.attrib["name"] for p in first)
    assert (out.tag, err.tag) == ("system-out", "system-err")
    for case in cases:
        assert case.tag == "testcase"
        assert set(case.attrib) == {"classname", "name", "time"}
        assert all(v == " ".join(v.split()) != "" for v in case.attrib.values())
        assert len(case) <= 1
        for child in case:
            assert child.tag in ("failure", "skipped")
            assert set(child.attrib) == (
                {"message", "type"} if child.tag == "failure" else {"message"}
            )
            assert child.text.startswith(child.attrib["message"])  # GitLab reads the text
    assert len({c.attrib["name"] for c in cases}) == len(cases)  # GitLab drops doubles
    assert int(a["tests"]) == len(cases)
    assert int(a["failures"]) == len(suite.findall("testcase/failure"))
    assert int(a["skipped"]) == len(suite.findall("testcase/skipped"))
    return suite


@pytest.mark.parametrize("sample", SAMPLES)
def test_junit_is_valid(sample):
    valid(render("junit", SAMPLES[sample]))


def test_junit_says_what_failed_what_is_open_and_where():
    suite = valid(render("junit", judged()))
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["skipped"]) == (
        "3",
        "1",
        "1",
    )
    assert suite.attrib["hostname"] == "board"
    assert suite.attrib["timestamp"] == "2026-01-01T00:00:00"
    failure = suite.find("testcase/failure")
    assert failure.attrib["type"] == "fail"
    assert "at least +5% was allowed" in failure.attrib["message"]
    assert "baseline 1,000 samples/s" in failure.text.replace("1000", "1,000")
    assert "p99 needs 662" in suite.find("testcase/skipped").text


def test_junit_fails_what_is_open_where_strict():
    suite = valid(render("junit", judged(strict=True)))
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("2", "0")
    assert {f.attrib["type"] for f in suite.iter("failure")} == {"fail", "inconclusive"}


@pytest.mark.parametrize(
    ("started", "stamp"),
    [
        ("2026-03-01T23:30:00+02:00", "2026-03-01T21:30:00"),
        ("2026-03-01T23:30:00", "2026-03-01T23:30:00"),
        ("yesterday", "1970-01-01T00:00:00"),
    ],
)
def test_junit_has_times_without_a_zone(started, stamp):
    now = dataclasses.replace(of(), started=started)
    suite = valid(render("junit", judged(b=now)))
    assert suite.attrib["timestamp"] == stamp


@FEW
@given(labels, labels, st.sampled_from(NASTY))
def test_junit_takes_any_name(first, second, host):
    machine = dataclasses.replace(MACHINE, hostname=host)
    a = made(around(1e6), task=dataclasses.replace(TASK, label=first), machine=machine)
    b = made(around(2e6), task=dataclasses.replace(TASK, label=second), machine=machine)
    valid(render("junit", judged(a, b)))


# ---------------------------------------------------------------- Markdown


def cells(line: str) -> list[str]:
    """The cells of a row, as GitHub's Markdown splits them."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("sample", SAMPLES)
def test_markdown_tables_have_equal_rows_and_no_markup_of_strangers(sample):
    text = render("markdown", SAMPLES[sample])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(cells(row)) for row in rows}) <= 1
    assert len(rows) == (len(SAMPLES[sample].verdict.checks) + 2 if rows else 0)
    outside = re.sub(r"(`+).*?\1", "", text)
    assert "<" not in outside
    assert text.startswith(f"## mint-deploy: {SAMPLES[sample].verdict.state}\n")


def test_markdown_puts_first_what_failed_and_says_why():
    text = render("markdown", judged())
    states = re.findall(r"\*\*(pass|inconclusive|fail)\*\*", text)
    assert states == ["fail", "inconclusive", "pass"]
    assert "p99 needs 662" in text
    assert "`now.jsonl` against `base.jsonl`: a limit is broken." in text
    assert "Measured on Cortex-A78AE, 6 cores." in text


def test_markdown_says_that_strict_makes_it_an_error():
    inconclusive = {"p99": "+5%"}
    assert "an error" in render("markdown", judged(limits=inconclusive, strict=True))
    assert "an error" not in render("markdown", judged(limits=inconclusive))


@pytest.mark.parametrize("limit", [2_000, 10_000, 64_000, 1 << 20])
def test_markdown_stays_under_its_limit_and_says_what_is_left_out(limit):
    count = 300 + limit // 80
    checks = many(count)
    text = markdown(checks, limit_bytes=limit)
    assert len(text.encode()) <= limit
    left = int(re.search(r"(\d+) more checks are left out", text)[1])
    assert text.count("**fail**") + left == count
    assert text.count("**fail**") > 0
    assert len(text.encode()) > limit - 1_000  # what fits is there


def test_markdown_lists_doubts_and_notes_and_counts_the_rest():
    noisy = dataclasses.replace(of(label="a"), doubts=tuple(f"doubt {i}" for i in range(30)))
    text = render("markdown", judged([of(label="a"), of(label="b")], [noisy, of(label="c")]))
    assert "doubt 19" in text
    assert "and 10 more" in text
    assert "new: c, " in text


# ---------------------------------------------------------------- text for people


@pytest.mark.parametrize("sample", SAMPLES)
def test_text_ends_with_the_state_and_gives_the_runner_no_commands(sample):
    text = render("text", SAMPLES[sample])
    assert text.splitlines()[-1] == SAMPLES[sample].verdict.state
    for line in text.splitlines():
        assert not line.strip().startswith("::")
        assert "##[" not in line


def test_text_has_a_heading_for_each_network_and_the_reason_below_its_row():
    text = render(
        "text", judged([of(label="a"), of(label="b")], [of(label="a"), of(2e6, label="b")])
    )
    lines = text.splitlines()
    assert lines[0].startswith("a, onnxruntime fp32")
    assert lines[1].split() == ["baseline", "now", "change", "limit"]
    heading = next(i for i, line in enumerate(lines) if line.startswith("b, onnxruntime"))
    assert lines[heading + 1].split()[:2] == ["latency", "fail"]
    assert "at most +5% was allowed" in lines[heading + 2]
    assert "the whole run" in render("text", SAMPLES["accuracy"])


# ---------------------------------------------------------------- figures over time


def test_bmf_has_the_built_in_measures_with_their_bounds():
    body = json.loads(render("bmf", judged(b=made(around(2e6, 0.01), energy_mj=3.0))))
    (name,) = body
    assert name == "model/onnxruntime-fp32/single_stream/batch-1/threads-1"
    measures = body[name]
    assert set(measures) == {
        "latency", "throughput", "memory", "import-memory", "energy", "file-size", "params", "macs",
        "weights", "activations",
    }  # fmt: skip
    latency = measures["latency"]
    assert latency["lower_value"] < latency["value"] < latency["upper_value"]
    assert latency["value"] == pytest.approx(2e6, rel=0.01)
    assert measures["throughput"]["value"] == pytest.approx(500, rel=0.01)
    assert measures["file-size"] == {"value": 100_000}


@FEW
@given(measurements)
def test_bmf_is_what_bencher_publishes_as_its_schema(m):
    """Objects of objects of ``value``, ``lower_value``, ``upper_value``; names within their lengths."""
    body = json.loads(render("bmf", judged(m, m, {"latency": "+5%"})))
    for name, measures in body.items():
        assert 0 < len(name) <= 1024
        for measure, metric in measures.items():
            assert re.fullmatch(r"[a-z0-9-]{1,64}", measure)
            assert {"value"} <= set(metric) <= {"value", "lower_value", "upper_value"}
            assert all(isinstance(v, (int, float)) for v in metric.values())
            assert metric.get("lower_value", metric["value"]) <= metric["value"]


def test_a_benchmark_keeps_its_name_and_two_tasks_have_two():
    assert benchmark(of(label="x" * 5000).task).count("x") < 1000
    names = {
        benchmark(of(**task).task)
        for task in ({}, {"batch": 8}, {"threads": 2}, {"streams": 4}, {"runtime": "openvino"},
                     {"precision": "fp16"}, {"scenario": "offline"}, {"label": "other"})
    }  # fmt: skip
    assert len(names) == 8
    assert benchmark(of(5e6).task) == benchmark(of(1e6).task)


def test_github_action_benchmark_gets_smaller_and_bigger_in_two_files():
    smaller = json.loads(render("github-action", judged()))
    bigger = json.loads(render("github-action-bigger", judged()))
    for row in [*smaller, *bigger]:
        assert {"name", "unit", "value"} <= set(row) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(row["value"], (int, float))
        assert all(isinstance(row[key], str) for key in set(row) - {"value"})
    assert [row["name"].rpartition(": ")[2] for row in bigger] == ["throughput"]
    assert "throughput" not in {row["name"].rpartition(": ")[2] for row in smaller}
    latency = smaller[0]
    assert latency["unit"] == "ns"
    assert latency["value"] == pytest.approx(1.02e6, rel=0.01)
    # as the action's extractRangeInfo reads it
    found = re.search(r"(?P<prefix>(\+-|±)\s*)(?P<value>\d.+)", latency["range"])
    assert float(found["value"]) == pytest.approx(
        (1.02e6 * 0.002 * math.sqrt(0.5) / math.sqrt(5) * 2.776 * math.sqrt(5 / 4)), rel=0.1
    )
    assert "95 % interval" in latency["extra"]


# ---------------------------------------------------------------- CSV


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_for_each_measurement_and_units_in_its_header():
    first, second = rows(render("csv", judged(b=made(around(2e6), energy_mj=3.0))))
    assert (first["side"], second["side"]) == ("baseline", "now")
    assert {
        "latency_ns", "latency_ns_low", "latency_ns_high", "p99_ns", "throughput_per_s", "memory_bytes",
        "import_memory_bytes", "gpu_memory_bytes", "energy_mj", "size_bytes", "params", "macs",
        "weights_bytes", "activations_bytes",
    } <= set(first)  # fmt: skip
    assert float(second["latency_ns"]) == pytest.approx(2e6, rel=0.01)
    assert float(second["latency_ns_low"]) < 2e6 < float(second["latency_ns_high"])
    assert second["size_bytes"] == "100000"
    assert second["energy_mj"] == "3"
    assert first["energy_mj"] == ""
    assert "energy: not recorded" in first["missing"]
    assert "p99: 45 samples" in first["missing"]
    assert (first["restarts"], first["samples"], first["converged"]) == ("5", "45", "yes")


@FEW
@given(st.lists(measurements, min_size=1, max_size=3))
def test_csv_reads_back_whatever_the_names(found):
    read = rows(table([("now", m) for m in found]))
    assert len(read) == len(found)
    for row, m in zip(read, found, strict=True):
        assert None not in row
        assert row["sha256"] == m.task.sha256 or "\x00" in m.task.sha256
        assert int(row["batch"]) == m.task.batch
        for name, cell in row.items():
            if name.endswith(("_ns", "_bytes", "_mj", "_per_s", "_low", "_high")):
                assert cell == "" or math.isfinite(float(cell))


def test_csv_of_nothing_is_nothing():
    assert table([]) == ""


# ---------------------------------------------------------------- JSON


def test_json_has_the_checks_with_their_digits_and_both_sides():
    a, b = made(around(1.23456e6, 0.02)), made(around(1.3e6, 0.02))
    body = json.loads(render("json", judged(a, b, {"latency": "+5%", "size": "+0%"})))
    latency, size = body["checks"]
    for key in ("baseline", "now", "low", "high"):
        assert number(latency[key]).rstrip("0") in number(latency[key])
        assert len(number(latency[key]).rstrip("0")) <= 4
    assert latency["low"] < latency["now"] < latency["high"]
    assert (size["baseline"], size["now"]) == (100_000, 100_000)
    assert (body["kind"], body["state"], body["exit_code"]) == (
        "Verdict",
        body["state"],
        0 if body["state"] != "fail" else 1,
    )
    (pair,) = body["pairs"]
    assert pair["now"]["figures"]["latency"]["unit"] == "ns"
    assert pair["now"]["figures"]["p99"]["value"] is None
    assert "p99 needs 662" in pair["now"]["figures"]["p99"]["reason"]
    assert pair["now"]["machine"]["hostname"] == "board"


@pytest.mark.parametrize(("strict", "code"), [(False, 0), (True, 3)])
def test_json_says_the_exit_code(strict, code):
    body = json.loads(render("json", judged(limits={"p99": "+5%"}, strict=strict)))
    assert (body["state"], body["exit_code"], body["strict"]) == ("inconclusive", code, strict)
