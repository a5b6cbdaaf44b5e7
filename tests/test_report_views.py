"""Cards, machines, digits and the places of labels: small functions of the page, each with its law."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import report_measured as made
import report_runs as runs
from hypothesis import example, given
from hypothesis import strategies as st
from report_page import parse

from mint_deploy import files, machine
from mint_deploy.report import charts, headline, measured, plots, svg, timings, view, words
from mint_deploy.report.cards import cards
from mint_deploy.report.machines import machine_groups, machine_rows, state_columns

# ---------------------------------------------------------------- digits


@given(
    st.floats(min_value=1e-3, max_value=1e9),
    st.floats(min_value=1e-6, max_value=0.9),
    st.floats(min_value=0, max_value=1),
)
def test_a_figure_is_rounded_where_its_interval_begins(value, relative, where):
    half = value * relative
    low, high = value - 2 * half * where, value + 2 * half * (1 - where)
    said, span = words.between(value, low, high)
    ends = [float(v.replace("−", "-")) for v in span.split(" to ")]
    printed = float(said)
    digits = len(re.sub(r"^[0.]+|\.", "", said).rstrip("0") or "0")
    assert digits <= 4
    unit = 10 ** math.floor(math.log10(value))  # of the leading digit
    for shown, exact in zip((printed, *ends), (value, low, high), strict=True):
        assert abs(shown - exact) <= max(half, 0.00501 * unit) * 1.001
    if digits <= 3 and half > 0.005 * unit:
        whole = len(said) - len(said.rstrip("0"))
        place = 10 ** -len(said.partition(".")[2]) if "." in said else 10**whole
        assert place >= half / 31  # no digit that the interval does not support


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.timed(3_412_300, 3_388_000, 3_437_000), ("3.41 ms", "3.39 to 3.44")),
        (words.timed(166_200, 110_400, 240_100), ("170 µs", "110 to 240")),
        (words.timed(1_997_000, 1_996_500, 1_997_500), ("1.997 ms", "1.996 to 1.998")),
        (words.timed(5e9, None, None), ("5.00 s", "")),
        (words.timed(None, 1, 2), ("–", "")),
        (words.energy(4.213), "4.21 mJ"),
        (words.energy(0.0381), "38.1 µJ"),
        (words.energy(2513), "2.51 J"),
        (words.energy(None), "–"),
        (words.short(6023, digits=2), "6.0 k"),
        (words.short(286, digits=1), "300"),
    ],
)
def test_figures_with_intervals_print_as_expected(said, expected):
    assert said == expected


@given(st.floats(min_value=1e-3, max_value=1e9), st.floats(min_value=1e-9, max_value=10))
def test_one_to_three_digits_are_supported(value, relative):
    assert 1 <= words.supported(value, value * (1 - relative), value * (1 + relative)) <= 3


def test_percentiles_have_no_more_digits_than_the_median():
    noisy = measured.section([made.single("dense")])
    run = noisy["runs"][0]
    run["interval"] = {"centre": 3.46e6, "low": 3.0e6, "high": 4.2e6}
    (row,) = timings.latency_rows({"latency": noisy})
    assert (row["figures"]["median"], row["median_span"]) == ("3.5 ms", "3.0 to 4.2")
    assert re.fullmatch(r"3\.\d ms", row["figures"]["p99"])
    assert row["per_s"] == "290"  # 1 / 3.46 ms, two digits


# ---------------------------------------------------------------- cards


def shown(found):
    rows = headline.of_measurements(measured.section(found, [made.comparison()] * (len(found) > 1)))
    return cards(view.before_after({"headline": rows}), rows)


def test_cards_lead_with_the_latency_and_say_nothing_twice():
    found = shown([made.single(label) for label in made.MODELS])
    assert [c.key for c in found] == [
        "latency", "file_bytes", "params", "macs", "peak_memory", "energy", "peak_activation_bytes",
    ]  # fmt: skip
    latency = found[0]
    assert (latency.value, latency.unit, latency.seen) == ("1.73×", "as fast", "faster")
    assert latency.detail == "1.69 to 1.77, 95 % interval"
    assert (latency.before, latency.before_span) == ("3.46 ms", "3.42 to 3.51")
    assert (latency.after, latency.after_span) == ("2.00 ms", "1.99 to 2.01")
    energy = found[5]
    assert (energy.value, energy.plot, energy.origin) == ("–", None, "")
    assert energy.reason == "no energy counter: /sys/class/powercap does not exist"


def test_the_cards_of_one_model_are_its_figures():
    found = {c.key: c for c in shown([made.single("dense")])}
    assert (found["latency"].value, found["latency"].unit) == ("3.46", "ms")
    assert found["latency"].detail == "3.42 to 3.51"
    assert (found["params"].value, found["params"].unit, found["params"].reason) == ("853", "k", "")
    assert all(c.before == c.after == "" for c in found.values())
    assert found["energy"].reason


def test_gpu_memory_is_a_card_where_there_is_a_gpu():
    from dataclasses import replace

    with_gpu = [
        replace(made.single(n), gpu_bytes=b) for n, b in (("dense", 4 * 10**8), ("slim", 10**8))
    ]
    card = next(c for c in shown(with_gpu) if c.key == "gpu_memory")
    assert (card.value, card.before, card.after) == ("0.250×", "400 MB", "100 MB")


# ---------------------------------------------------------------- the machine


def test_what_a_gpu_does_not_tell_is_shown_with_its_reason():
    gpu = {"name": "NVIDIA L4", "driver": "550.54", "power_limit_w": None}
    nulls = {"gpu.power_limit_w": "not supported", "gpu.mig": "an old driver"}
    record = {"gpu": "NVIDIA L4", "details": {"gpu": gpu, "nulls": nulls}}
    rows = dict(dict(machine_groups(record))["GPU"])
    assert rows["Power limit"].endswith("not supported")
    assert rows["MIG"].endswith("an old driver")
    assert rows["Driver"] == "550.54"


def test_every_field_of_a_probed_machine_is_shown_once_with_its_reason():
    record = files.encode(machine.probe())
    groups = dict(machine_groups(record))
    text = "\n".join(f"{title}: {value}" for rows in groups.values() for title, value in rows)
    for reason in record["details"]["nulls"].values():
        assert reason in text
    for version in record["versions"].values():
        assert version in text
    assert dict(groups["CPU"])["CPU"] == record["cpu"]
    assert set(groups) <= {"System", "CPU", "Clocks", "GPU", "Board", "Versions", "More"}
    titles = [title for title, _ in machine_rows(record)]
    assert len(titles) == len(set(titles))


def test_a_gpu_and_what_nobody_foresaw_find_their_group():
    record = files.encode(runs.MACHINE)
    record["gpu"] = "NVIDIA H100"
    record["details"] = {
        "gpu": {
            "name": "NVIDIA H100", "driver_version": "580.1", "sm_mhz": 1980.0, "mig": None,
            "memory_bytes": 85_000_000_000, "persistence": True,
        },
        "turbo": False,
        "steal_since_boot": 0.0031,
        "gpu_fan": 3,
        "surprise": {"a": 1},
        "nulls": {"gpu.mig": "not asked", "lost": "nobody knows"},
    }  # fmt: skip
    groups = {name: dict(rows) for name, rows in machine_groups(record)}
    assert groups["GPU"] == {
        "GPU": "NVIDIA H100", "Driver version": "580.1", "SM": "1980 MHz", "Memory": "85.0 GB",
        "Persistence": "yes", "Gpu fan": "3", "MIG": "– not asked",
    }  # fmt: skip
    assert groups["Clocks"]["Turbo"] == "no"
    assert groups["Clocks"]["Steal since boot"] == "0.31 %"
    assert groups["More"]["Surprise"] == "a 1"
    assert groups["More"]["Lost"] == "– nobody knows"


def test_gaps_of_one_reason_share_a_row():
    record = files.encode(runs.MACHINE)
    why = "no cpufreq in /sys"
    record["details"] = {"turbo": None, "nulls": {"governor": why, "turbo": why}}
    clocks = dict(dict(machine_groups(record))["Clocks"])
    assert clocks["CPU governor, Turbo"] == f"– {why}"
    rows = dict(machine_rows(record))
    assert rows["CPU governor"] == rows["Turbo"] == f"– {why}"


def test_looks_show_what_they_hold_and_why_the_rest_is_missing():
    looks = [files.encode(s) for s in made.states(2)]
    columns, rows, missing = state_columns(
        looks, {"gpu": "no GPU", "temperature_c": "no sensor", "throttled": "no sensor"}
    )
    assert columns == ["Load", "Steal", "Other CPU", "CPU clock"]
    assert rows[1] == ["1.3", "0.40 %", "0.060 cores", "2675 MHz"]
    assert dict(missing)["Throttled, Temperature"] == "no sensor"
    assert dict(missing)["GPU clock"] == "no GPU"


# ---------------------------------------------------------------- pictures


def picture(markup):
    return parse(f"<!DOCTYPE html>{markup}")


scale = charts.Axis(low=0.0, high=100.0, ticks=(0.0, 50.0, 100.0))


@given(
    st.lists(
        st.tuples(st.sampled_from(["p50 3.46 ms", "p90 3.6 ms", "p99 4.50 ms →"]), st.floats(0, 100)),
        min_size=1, max_size=3,
    )
)  # fmt: skip
@example([("p50 3.46 ms", 60.0), ("p99 4.50 ms →", 85.0)])  # p50 would reach over the line of p99
@example([("p50 3 ms", 60.0), ("p99 4.50 ms →", 85.0)])  # p99 turns back over the line of p50
def test_no_line_of_a_mark_crosses_another_ones_text(marks):
    rows = plots._rows(scale, marks)
    assert sorted(text for text, _, _ in rows) == sorted(text for text, _ in marks)
    for row, (text, at, left) in enumerate(rows):
        size = 100 * len(text) * plots._LETTER / plots._PHONE
        extent = (at - size, at) if left else (at, at + size)
        assert extent[1] <= 101 or not left
        if left or at > size:  # else there is room on one side alone
            for _, line, _ in rows[:row]:  # lines that begin above pass this row
                assert not extent[0] + 0.01 < line < extent[1] - 0.01


def test_a_distribution_is_drawn_where_it_lies():
    shape = {"low": 20.0, "high": 40.0, "counts": [1, 4, 2]}
    restarts = [{"q1": 28.0, "median": 30.0, "q3": 33.0}] * 2
    tree = picture(
        plots.distribution(
            scale,
            shape,
            [("p50 30", 30.0)],
            restarts,
            span=(29.0, 31.0),
            title="said",
            tone="dense",
        )
    )
    band = tree.one("rect", class_="band").attributes
    assert (band["x"], band["width"]) == ("29%", "2%")
    points = [p.split(",") for p in tree.one("polygon").attributes["points"].split()]
    assert (points[0], points[-1]) == (["20", "44"], ["40", "44"])
    assert min(float(y) for _, y in points) == 0  # the tallest bar fills the area
    assert [c.attributes["cx"] for c in tree.all("circle")] == ["30%", "30%"]
    assert tree.one("line", class_="mark").attributes["x1"] == "30%"
    flat = {"low": 5.0, "high": 5.0, "counts": [9]}
    one = picture(plots.distribution(scale, flat, [], [], span=None, title="t", tone="slim"))
    assert len(one.all("line", class_="whisker")) == 1


def test_a_point_has_whiskers_in_both_directions_or_is_an_arrow():
    def point(name, y):
        return plots.Point(
            name=name, said=name, tone="slim", x=50, y=y, x_span=(40, 60), y_span=(y - 5, y + 5)
        )

    up = charts.Axis(low=80, high=100, ticks=(80.0, 90.0, 100.0))
    tree = picture(
        plots.plane(scale, up, [point("slim", 90), point("cut", 10)], title="t", height=200)
    )
    across, along = tree.all("line", class_="whisker")
    assert [across.attributes[k] for k in ("x1", "x2", "y1", "y2")] == ["40%", "60%", "100", "100"]
    assert [along.attributes[k] for k in ("x1", "x2", "y1", "y2")] == ["50%", "50%", "150", "50"]
    assert len(tree.all("circle")) == len(tree.all("polygon")) == 1
    assert [t.text for t in tree.all("text", class_="name")] == ["slim", "cut"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 250)), min_size=1, max_size=8))
def test_names_of_points_do_not_lie_upon_each_other(places):
    made_ = plots._labels([f"n{i}" for i in range(len(places))], places, 250.0)
    found = picture(svg.tag("svg", "".join(made_))).all("text")
    assert sorted(n for t in found for n in t.text.split(", ")) == sorted(
        f"n{i}" for i in range(len(places))
    )
    boxes = []
    for text in found:
        x, size = (
            float(text.attributes["x"].rstrip("%")),
            100 * len(text.text) * plots._NAME / plots._PHONE,
        )
        begin = x if text.attributes["text-anchor"] == "start" else x - size
        boxes.append((begin, begin + size, float(text.attributes["y"])))
    for i, (a, b, y) in enumerate(boxes):
        for a2, b2, y2 in boxes[:i]:
            assert b <= a2 + 0.1 or b2 <= a + 0.1 or abs(y - y2) >= plots._LINE - 0.02


def test_a_sweep_rings_its_knee_and_a_bar_begins_where_the_imports_end():
    line = {
        "label": "slim", "tone": "slim", "knee": 4,
        "points": [{"batch": b, "per_s": r} for b, r in ((1, 100.0), (4, 200.0), (8, 200.0))],
    }  # fmt: skip
    tree = picture(plots.sweep([1, 4, 8], [line], title="t", height=100))
    ring = tree.one("circle", class_="ring").attributes
    assert (ring["cx"], ring["cy"]) == ("50%", "0")
    assert [c.attributes["cy"] for c in tree.all("circle", class_="dot")] == ["50", "0", "0"]
    bar = picture(plots.memory(scale, 60.0, 20.0, title="t", tone="slim"))
    assert bar.one("rect", class_="imports").attributes["width"] == "60%"
    assert bar.one("rect", class_="solid").attributes["x"] == "60%"


@given(st.integers(2, 9), st.sampled_from(["", " %", "×"]), st.floats(120, 400))
def test_numbers_under_a_picture_do_not_touch(count, unit, wide):
    axis = charts.Axis(
        low=0, high=count - 1, ticks=tuple(map(float, range(count))), places=1, unit=unit
    )
    found = picture(charts.ticks(axis, wide=wide)).all("text")
    assert found
    ends = []
    for text in found:
        x, size = float(text.attributes["x"].rstrip("%")) / 100 * wide, len(text.text) * 6.6
        begin = {"start": x, "middle": x - size / 2, "end": x - size}[
            text.attributes["text-anchor"]
        ]
        ends.append((begin, begin + size))
    if len(found) > 1 and 3 * len(axis.text(1)) * 6.6 < wide:
        assert all(b[0] >= a[1] - 7 for a, b in itertools.pairwise(ends))
