"""Energy counters, on a tree of the form that the kernel shows under /sys/class/powercap."""

from __future__ import annotations

import os

import pytest

from mint_deploy import sensors


def _zone(root, name, label, energy=1_000_000, size=262143328850):
    zone = root / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{label}\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{size}\n")
    return zone


def _set(zone, energy):
    (zone / "energy_uj").write_text(f"{energy}\n")


def test_only_whole_packages_are_counted(tmp_path):
    (tmp_path / "intel-rapl").mkdir()
    first = _zone(tmp_path, "intel-rapl:0", "package-0")
    second = _zone(tmp_path, "intel-rapl:1", "package-1", energy=5)
    _zone(tmp_path, "intel-rapl:0:0", "core")
    _zone(tmp_path, "intel-rapl:2", "psys")
    meter, reason = sensors.find_meter(tmp_path)
    assert reason is None
    assert meter.zones == (first, second)
    before = meter.read_uj()
    assert before == (1_000_000, 5)
    _set(first, 1_500_000)
    _set(second, 100_005)
    assert meter.between_mj(before, meter.read_uj()) == pytest.approx(600.0)


def test_a_counter_that_wraps_around_is_put_right(tmp_path):
    _zone(tmp_path, "intel-rapl:0", "package-0", size=999_999)
    meter, _ = sensors.find_meter(tmp_path)
    assert meter.between_mj((990_000,), (10_000,)) == pytest.approx(20.0)


def test_no_sensor_gives_the_reason(tmp_path):
    meter, reason = sensors.find_meter(tmp_path / "absent")
    assert meter is None
    assert "does not exist" in reason
    (tmp_path / "dtpm").mkdir()
    meter, reason = sensors.find_meter(tmp_path)
    assert meter is None
    assert "no RAPL package" in reason


def test_a_counter_that_is_not_a_number_gives_the_reason(tmp_path):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0")
    (zone / "energy_uj").write_text("oops")
    meter, reason = sensors.find_meter(tmp_path)
    assert meter is None
    assert "cannot be read" in reason


def test_a_counter_for_root_only_says_how_to_open_it(tmp_path, monkeypatch):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0")
    (zone / "energy_uj").chmod(0)
    if os.geteuid() == 0:  # root may read anything: let the file refuse as it does for others
        real = type(zone).read_text

        def refuse(self, *args, **kwargs):
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(type(zone), "read_text", refuse)
    meter, reason = sensors.find_meter(tmp_path)
    assert meter is None
    assert f"sudo chmod a+r {zone / 'energy_uj'}" in reason


def test_idle_power_is_energy_over_time(tmp_path, monkeypatch):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0", energy=0)
    meter, _ = sensors.find_meter(tmp_path)
    monkeypatch.setattr(sensors.time, "sleep", lambda _: _set(zone, 3_000_000))
    ticks = iter([100.0, 100.5])
    monkeypatch.setattr(sensors.time, "perf_counter", lambda: next(ticks))
    assert sensors.idle_w(meter) == pytest.approx(6.0)


def test_energy_of_an_inference_is_what_exceeds_idle():
    # 10 J in 2 s with 3 W idle: 4 J over 100 inferences
    assert sensors.per_inference_mj(10_000, 3.0, 2.0, 100) == pytest.approx(40.0)
    assert sensors.per_inference_mj(5_000, 3.0, 2.0, 100) is None
    assert sensors.per_inference_mj(5_000, 0.0, 2.0, 0) is None
