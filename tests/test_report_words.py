"""How figures become text, and where charts put them: small functions, each with its law."""

from __future__ import annotations

import doctest
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_nets import resnet_layers
from report_page import parse

from mint_deploy.report import charts, view, words

finite = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)
positive = st.floats(min_value=1e-9, max_value=1e12)


def number(text):
    """The number that a printed figure says."""
    found = re.match(r"[+−]?[\d,]+(?:\.\d+)?", text)
    assert found, text
    return float(found[0].replace("−", "-").replace(",", ""))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.significant(0.49712), "0.497"),
        (words.significant(9.9996), "10.0"),
        (words.significant(123456), "123000"),
        (words.significant(0), "0"),
        (words.fixed(-0.04, 1), "0.0"),
        (words.fixed(-0.06, 1), "−0.1"),
        (words.count(853018), "853,018"),
        (words.short(853018), "853 k"),
        (words.short(999_999), "1.00 M"),
        (words.short(125_500_000, "MACs"), "126 MMACs"),
        (words.short(999), "999"),
        (words.short(0), "0"),
        (words.bytes_(3_446_102), "3.45 MB"),
        (words.bytes_(812), "812 bytes"),
        (words.duration(2_013_456), "2.01 ms"),
        (words.duration(999_999), "1.00 ms"),
        (words.duration(640), "640 ns"),
        (words.duration(12_345), "12.3 µs"),
        (words.duration(1.5e9), "1.50 s"),
        (words.factor(1.7345), "1.73×"),
        (words.factor(1.7345, 1), "1.7×"),
        (words.percent(0.92123, 2), "92.12 %"),
        (words.share(0.00417), "0.42 %"),
        (words.share(1.0), "100 %"),
        (words.points(0.31), "+0.3"),
        (words.points(-0.04), "0.0"),
        (words.points(-0.7), "−0.7"),
        (words.span(0.9163, 0.9261, 1, scale=100), "91.6 to 92.6"),
        (words.span(None, 1), ""),
        (words.error(3.24e-13), "3.2e-13"),
        (words.error(0.0), "0"),
        (words.error(0.39), "3.9e-1"),
        (words.error("no power"), "no power"),
        (words.clip("abcdefghij", 7), "abcd…ij"),
        (words.plain("a\x1b[1m\nb\u202e"), "a\ufffd[1m b\ufffd"),
    ],
)
def test_figures_print_as_expected(said, expected):
    assert said == expected


@pytest.mark.parametrize(
    "say", [words.count, words.short, words.bytes_, words.duration, words.factor, words.percent,
            words.share, words.points, words.error],
)  # fmt: skip
def test_absence_is_a_dash_everywhere(say):
    assert say(None) == words.NOT_HERE


def test_an_accuracy_never_rounds_to_perfect():
    assert words.accuracy_places([(0.96, 0.99), (0.17, 0.26)]) == 1
    assert words.accuracy_places([(0.9971, 0.9972)]) == 2
    assert words.percent(0.997, words.accuracy_places([(0.9, 1.0)])) == "99.7 %"


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(words).failed == 0


@given(positive)
def test_three_significant_digits_are_right_and_no_more(value):
    said = words.significant(value)
    assert abs(number(said) - value) <= 0.5000001 * 10 ** (math.floor(math.log10(value)) - 2)
    assert "e" not in said


@given(st.floats(min_value=1e-3, max_value=30))
def test_the_last_decimal_is_where_the_uncertainty_begins(half):
    places = words.decimals(half, most=9)
    unit = 10.0**-places
    assert unit <= half * 1.0000001 or places == 0  # it does not hide the uncertainty
    assert unit >= half / 31  # and does not pretend to more


@given(st.text(), st.integers(min_value=3, max_value=60))
def test_plain_and_clipped_text_is_one_short_line(text, width):
    line = words.clip(text, width)
    assert len(line) <= width
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", line)
    line.encode("utf-8")
    assert words.plain(words.plain(text)) == words.plain(text)


@given(st.lists(finite, min_size=1, max_size=8), st.booleans())
def test_an_axis_holds_its_values_between_round_ticks(values, zero):
    values = [abs(v) for v in values] if zero else values
    axis = charts.axis(values, zero=zero)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(values)
    assert max(values) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 9
    assert all(0 <= axis.at(v) <= 100 for v in values)
    steps = {
        round((b - a) / (axis.high - axis.low), 6)
        for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)
    }
    assert len(steps) == 1
    if max(abs(t) for t in axis.ticks) < 1e6 * (axis.high - axis.low):
        assert len({axis.text(t) for t in axis.ticks}) == len(axis.ticks)


def svg(markup):
    return parse(f"<!DOCTYPE html>{markup}").all("svg")


def test_a_dot_stands_where_its_value_is():
    scale = charts.Axis(low=0, high=200, ticks=(0.0, 100.0, 200.0))
    picture = svg(charts.interval(scale, 50, 40, 70, title="t"))[0]
    assert picture.one("circle").attributes["cx"] == "25%"
    line = next(n for n in picture.all("line", class_="whisker"))
    assert (line.attributes["x1"], line.attributes["x2"]) == ("20%", "35%")


def test_an_axis_of_one_value_at_its_bound_has_room_on_the_other_side():
    for value in (100.0, 0.0):
        axis = charts.axis([value, value], bounds=(0.0, 100.0))
        assert 0.0 <= axis.low < axis.high <= 100.0
        assert axis.low <= value <= axis.high
        assert len(axis.ticks) >= 2


def test_a_value_below_the_axis_is_an_arrow():
    scale = charts.Axis(low=80, high=100, ticks=(80.0, 100.0))
    picture = svg(charts.interval(scale, 41, 40, 42, title="t"))[0]
    assert len(picture.all("polygon")) == 1
    assert not picture.all("circle")


def test_columns_are_as_tall_as_their_widths():
    layers = [
        {"name": "a", "before": 64, "after": 32},
        {"name": "b", "before": 32, "after": 32},
    ]
    made = charts.columns(
        layers, "before", "after", title="t", text=words.count, unit="c", height=100
    )
    heights = [g.one("rect", class_="fill").attributes["height"] for g in svg(made)[1].all("g")]
    assert heights == ["50", "50"]
    behind = [g.one("rect", class_="behind").attributes["height"] for g in svg(made)[1].all("g")]
    assert behind == ["100", "50"]


def test_a_large_output_layer_is_cut_off_and_few_small_layers_do_not_bend_the_scale():
    layers = [{"name": f"l{i}", "before": 64, "after": 32} for i in range(20)]
    output = [*layers, {"name": "head", "before": 1000, "after": 1000}]
    assert charts.cut_off(output, "before")
    assert not charts.uses_root(output, "before")
    assert not charts.cut_off(layers, "before")
    steep = [{"name": "l", "before": 2 ** (i // 3), "after": 1} for i in range(30)]
    assert charts.uses_root(steep, "before")


def test_parts_of_a_network_are_named_where_they_fit():
    strip = svg(charts.stages(resnet_layers()))[0]
    assert [t.text for t in strip.all("text")] == ["layer1", "layer2", "layer3"]
    nested = [{"name": f"features.block{i // 20}.{i}.conv"} for i in range(60)]
    assert [t.text for t in svg(charts.stages(nested))[0].all("text")] == [
        "block0",
        "block1",
        "block2",
    ]


def test_a_picture_escapes_what_it_is_told():
    made = charts.bar(0.5, title='"><script>&')
    assert "<script" not in made
    assert svg(made)[0].attributes["aria-label"] == '"><script>&'


def test_parity_batches_are_counted():
    assert view.batches([1, 8, 1, 1]) == "3 of 1, 1 of 8"


def test_moments_are_to_the_minute():
    assert view.moment("2025-11-20T10:00:31+00:00") == "2025-11-20 10:00 UTC"
    assert view.moment("2025-11-20T10:00:31.25Z") == "2025-11-20 10:00 UTC"
    assert view.moment("yesterday") == "yesterday"
