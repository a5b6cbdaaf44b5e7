"""Figures have no more digits than their interval supports."""

from __future__ import annotations

import doctest
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as s

from mint_deploy import digits


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(digits).failed == 0
    assert doctest.testmod(digits).attempted == 5


@pytest.mark.parametrize(
    ("half", "found"),
    [(0.05, 2), (0.053, 2), (0.0143, 3), (0.029, 3), (0.0296, 2), (0.2, 2), (0.3, 1), (1.5, 1),
     (7.0, 0), (25.0, 0), (0.0996, 2), (9.96, 0), (43.0, -1), (430.0, -2), (1e-9, 10)],
)  # fmt: skip
def test_an_uncertainty_has_one_digit_and_two_where_it_begins_with_1_or_2(half, found):
    assert digits.places(half) == found


@pytest.mark.parametrize(
    ("ns", "low", "high", "shown"),
    [
        (3_418_700, 3_370_000, 3_470_000, "3.42 ms ± 0.05"),
        (3_418_700, 3_418_000, 3_419_400, "3.4187 ms ± 0.0007"),
        (3_418_700, 2_000_000, 5_000_000, "3.4 ms ± 1.5"),
        (812_300_000, 810_000_000, 814_600_000, "812.3 ms ± 2.3"),
        (1_230_000_000, 1_100_000_000, 1_360_000_000, "1.23 s ± 0.13"),
        (412.0, 400.0, 424.0, "412 ns ± 12"),
        (40_000, 14_000, 112_000, "40 µs (14 to 110)"),
        (3_418_700, None, None, "3.4 ms"),
        (3_418_700, 3_418_700, 3_418_700, "3.42 ms"),
        (999.6, None, None, "1000 ns"),
    ],
)
def test_durations(ns, low, high, shown):
    assert digits.duration(ns, low, high) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.98213, 0.97, 0.994, "0.982 ± 0.012"),
        (1.0, 0.9999, 1.0001, "1.00000 ± 0.00010"),
        (8123.0, 7800.0, 8400.0, "8100 ± 300"),
        (0.77, 0.185, 3.19, "0.8 (0.18 to 3.2)"),
        (1.0, 1e-9, 1e21, "1 (1e-09 to 1e+21)"),
        (1.0, 0.0, math.inf, "1.0"),
        (0.0, -1.0, 1.0, "0 (-1.0 to 1.0)"),
        (0.0, None, None, "0"),
    ],
)
def test_figures(value, low, high, shown):
    assert digits.figure(value, low, high) == shown


@given(s.floats(1e-6, 1e9), s.floats(1e-5, 0.999))
def test_value_and_uncertainty_end_at_the_same_digit_and_are_right_to_it(value, share):
    half = value * share
    shown = digits.figure(value, value - half, value + half)
    number, _, width = shown.partition(" ± ")
    assert width, shown
    # as far as they go, both are the figures themselves
    last = 10.0 ** -digits.places(half)
    assert abs(float(number) - value) <= 0.5 * last * (1 + 1e-6) + 1e-12 * value
    assert float(width) == pytest.approx(half, abs=0.5 * last * (1 + 1e-6))
    decimals = [len(part.partition(".")[2]) for part in (number, width)]
    assert decimals[0] == decimals[1]
    # one digit, or two: no more is claimed of an uncertainty
    assert len(re.sub(r"^0\.?0*|\.", "", width).rstrip("0") or "0") <= 2


@given(s.floats(1e-3, 1e12))
def test_without_an_interval_two_digits_are_claimed(value):
    number = digits.duration(value).split(" ")[0]
    assert len(number.replace(".", "").strip("0")) <= 2
    scale = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[digits.duration(value).split(" ")[1]]
    assert float(number) * scale == pytest.approx(value, rel=0.0501)
