"""A board's rails: which of them are its power, and energy as the sum of samples."""

from __future__ import annotations

import gc
import threading
import time
from unittest import mock

import numpy as np
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import _rails, sensors


def _ina3221(root, n, *rails, kind="ina3221"):
    """Write channels ``(label, millivolts, milliamperes)`` of one sensor."""
    trees.write(root, f"sys/class/hwmon/hwmon{n}/name", f"{kind}\n")
    for i, (label, volts, amperes) in enumerate(rails, 1):
        trees.write(root, f"sys/class/hwmon/hwmon{n}/in{i}_label", f"{label}\n")
        trees.write(root, f"sys/class/hwmon/hwmon{n}/in{i}_input", volts)
        trees.write(root, f"sys/class/hwmon/hwmon{n}/curr{i}_input", amperes)


class _Clock:
    """A clock that moves only when told, and a thread that never samples by itself."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(_rails.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(_rails._Sum, "follow", lambda self, stop, period: None)


def test_the_rail_into_the_module_counts_alone(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    _ina3221(
        tmp_path, 0, ("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 200)
    )
    rails = _rails.find_rails(tmp_path)
    assert rails.name == "VDD_IN (INA3221)"
    assert rails.read_uj() == 0
    clock.now += 2.0
    assert rails.read_uj() == 10_000_000  # 5 V, 1 A, 2 s
    # the power doubles at once: half of the trapezoid
    trees.write(tmp_path, "sys/class/hwmon/hwmon0/curr1_input", 2000)
    clock.now += 1.0
    assert rails.read_uj() == 17_500_000


def test_the_rails_of_a_larger_board_are_added_but_none_twice(tmp_path):
    _ina3221(
        tmp_path,
        1,
        ("VDD_GPU_SOC", 19000, 100),
        ("VDD_CPU_CV", 19000, 50),
        ("VIN_SYS_5V0", 5000, 800),
    )
    _ina3221(tmp_path, 2, ("NC", 1, 1), ("VDDQ_VDD2_1V8AO", 5000, 400))
    assert _rails.find_rails(tmp_path).name == "VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0 (INA3221)"


def test_a_sensor_that_shows_power(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    _ina3221(tmp_path, 0, ("VDD_GPU", 5000, 100))
    trees.write(tmp_path, "sys/class/hwmon/hwmon5/name", "ina238\n")
    trees.write(tmp_path, "sys/class/hwmon/hwmon5/power1_input", 60_000_000)
    rails = _rails.find_rails(tmp_path)
    assert rails.name == "VIN (INA3221)"
    rails.read_uj()
    clock.now += 0.5
    assert rails.read_uj() == 30_000_000


class _Told:
    """A rail whose power the test says."""

    name = "VDD_IN"

    def __init__(self):
        self.uw = 0

    def read_uw(self):
        return self.uw


@given(st.lists(st.tuples(st.floats(0.001, 10), st.none() | st.integers(0, 10**8)), max_size=30))
def test_energy_is_the_area_under_the_samples(course):
    rail, other = _Told(), _Told()
    other.uw = 1_000_000
    rails = _rails._Sum((rail, other))
    times, powers = [5.0], [1_000_000]
    with mock.patch.object(_rails.time, "perf_counter", side_effect=lambda: times[-1]):
        rails.sample()
        for seconds, uw in course:
            times.append(times[-1] + seconds)
            # a rail that gives no answer leaves the sum as it was
            powers.append(powers[-1] if uw is None else uw + other.uw)
            rail.uw = uw
            area = np.diff(times) @ (np.array(powers[1:]) + powers[:-1]) / 2
            assert rails.sample() == pytest.approx(area, rel=1e-9, abs=1.0)


@pytest.mark.parametrize(
    ("kind", "rails"),
    [
        ("k10temp", [("VDD_IN", 5000, 1000)]),
        ("ina3221", []),
        ("ina3221", [("NC", 5000, 1000)]),
        ("ina3221", [("VDD_IN", "", "")]),
        ("ina238", [("VDD_IN", 5000, 1000)]),
    ],
)
def test_no_rails(tmp_path, kind, rails):
    _ina3221(tmp_path, 0, *rails, kind=kind)
    assert _rails.find_rails(tmp_path) is None


def test_a_sensor_that_falls_silent_keeps_its_last_power(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    _ina3221(tmp_path, 0, ("VDD_IN", 5000, 1000))
    rails = _rails.find_rails(tmp_path)
    rails.read_uj()
    (tmp_path / "sys/class/hwmon/hwmon0/curr1_input").unlink()
    clock.now += 2.0
    assert rails.read_uj() == 10_000_000


def test_a_board_is_measured_by_its_rails_also_where_its_gpu_computes(tmp_path):
    _ina3221(tmp_path, 0, ("VDD_IN", 5000, 1000))
    for gpu in (False, True):
        meter, reason = sensors.find_meter(tmp_path, gpu=gpu)
        assert reason is None
        assert meter.what == "VDD_IN (INA3221)"
        assert meter.resolution_s == pytest.approx(0.1)


def _threads():
    return [t for t in threading.enumerate() if t.name == "rails"]


def test_the_thread_follows_the_power_between_two_readings_and_ends(tmp_path):
    _ina3221(tmp_path, 0, ("VDD_IN", 5000, 0))
    (rail,) = [_rails._channel(tmp_path / "sys/class/hwmon/hwmon0", 1)]
    rails = _rails.Rails((rail,), period_s=0.002)
    assert not _threads()  # nothing runs before it is needed
    rails.read_uj()
    # a pulse of 10 W that is over before the next reading: two readings alone would miss it
    trees.write(tmp_path, "sys/class/hwmon/hwmon0/curr1_input", 2000)
    time.sleep(0.2)
    trees.write(tmp_path, "sys/class/hwmon/hwmon0/curr1_input", 0)
    time.sleep(0.05)
    assert rails.read_uj() > 500_000  # 2 J, and a busy machine may sample late
    assert len(_threads()) == 1
    del rails
    gc.collect()
    for _ in range(500):
        if not _threads():
            break
        time.sleep(0.01)
    assert not _threads()
