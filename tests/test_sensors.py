"""Energy counters and GPU memory, on trees of the form that the kernel shows and NVML's double."""

from __future__ import annotations

import os

import nvml_double
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st
from nvml_double import NO_PERMISSION, NOT_SUPPORTED, Says

from mint_deploy import _nvml, sensors

RAPL = "sys/class/powercap"


def _zone(root, name, label, energy=1_000_000, size=262143328850):
    for file, value in (("name", label), ("energy_uj", energy), ("max_energy_range_uj", size)):
        trees.write(root, f"{RAPL}/{name}/{file}", f"{value}\n")
    return root / RAPL / name


def _set(zone, energy):
    (zone / "energy_uj").write_text(f"{energy}\n")


def _meter(root):
    meter, reason = sensors.find_meter(root)
    assert reason is None
    return meter


# ---------------------------------------------------------------- RAPL


def test_only_whole_packages_are_counted(tmp_path):
    (tmp_path / RAPL / "intel-rapl").mkdir(parents=True)
    first = _zone(tmp_path, "intel-rapl:0", "package-0")
    second = _zone(tmp_path, "intel-rapl:1", "package-1", energy=5)
    _zone(tmp_path, "intel-rapl:0:0", "core")
    _zone(tmp_path, "intel-rapl:2", "psys")
    meter = _meter(tmp_path)
    assert meter.what == "package-0 (RAPL) + package-1 (RAPL)"
    assert meter.resolution_s == 0.001
    before = meter.read_uj()
    assert before == (1_000_000, 5)
    _set(first, 1_500_000)
    _set(second, 100_005)
    assert meter.between_mj(before, meter.read_uj()) == pytest.approx(600.0)


@given(
    early=st.integers(0, 999_999),
    used=st.integers(0, 999_999),
)
def test_a_counter_that_wraps_around_is_put_right(early, used):
    zone = sensors.RaplZone(path=None, name="p", size_uj=1_000_000)
    meter = sensors.EnergyMeter(counters=(zone,))
    assert meter.between_mj((early,), ((early + used) % 1_000_000,)) == pytest.approx(used / 1000)


def test_no_sensor_gives_the_reason(tmp_path):
    meter, reason = sensors.find_meter(tmp_path / "absent")
    assert meter is None
    assert "does not exist" in reason
    (tmp_path / RAPL / "dtpm").mkdir(parents=True)
    meter, reason = sensors.find_meter(tmp_path)
    assert meter is None
    assert "no RAPL package" in reason


def test_a_counter_that_is_not_a_number_gives_the_reason(tmp_path):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0")
    (zone / "energy_uj").write_text("oops")
    meter, reason = sensors.find_meter(tmp_path)
    assert meter is None
    assert "cannot be read" in reason


def _refuse(monkeypatch, zone):
    (zone / "energy_uj").chmod(0)
    if os.geteuid() == 0:  # root may read anything: let the file refuse as it does for others
        real = type(zone).read_text

        def refuse(self, *args, **kwargs):
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(type(zone), "read_text", refuse)


def test_a_counter_for_root_only_says_how_to_open_it(tmp_path, monkeypatch):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0")
    _refuse(monkeypatch, zone)
    meter, reason = sensors.find_meter(tmp_path)
    assert meter is None
    assert f"sudo chmod a+r {zone / 'energy_uj'}" in reason


# ---------------------------------------------------------------- the GPU beside it


def test_a_gpu_that_computes_counts_beside_the_packages(tmp_path):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0")
    library = nvml_double.Library()
    gpu = _nvml.open_gpu(library)
    meter, reason = sensors.find_meter(tmp_path, gpu=gpu)
    assert reason is None
    assert meter.what == "package-0 (RAPL) + GPU (NVML)"
    assert meter.resolution_s == 0.1  # the slower of the two
    before = meter.read_uj()
    library.answers["nvmlDeviceGetTotalEnergyConsumption"] += 7
    _set(zone, 1_002_000)
    assert meter.between_mj(before, meter.read_uj()) == pytest.approx(9.0)
    # a model that the CPU computes is not charged with a GPU that idles
    assert sensors.find_meter(tmp_path)[0].what == "package-0 (RAPL)"


def test_a_gpu_alone_says_so(tmp_path):
    meter, reason = sensors.find_meter(tmp_path, gpu=nvml_double.gpu())
    assert reason is None
    assert meter.what == "GPU alone (NVML)"
    assert meter.read_uj() == (5_000_000_000,)


def test_a_gpu_without_a_counter_is_not_passed_off_as_its_cpu(tmp_path):
    _zone(tmp_path, "intel-rapl:0", "package-0")
    old = nvml_double.gpu(nvmlDeviceGetTotalEnergyConsumption=Says(NOT_SUPPORTED))
    meter, reason = sensors.find_meter(tmp_path, gpu=old)
    assert meter is None
    assert "the GPU's energy cannot be read: NVML says 'Not Supported'" in reason


def test_the_gpu_of_this_process_is_found_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sensors._nvml, "first_gpu", lambda: (nvml_double.gpu(), None))
    assert sensors.find_meter(tmp_path, gpu=True)[0].what == "GPU alone (NVML)"
    monkeypatch.setattr(sensors._nvml, "first_gpu", lambda: (None, "no NVIDIA driver"))
    meter, reason = sensors.find_meter(tmp_path, gpu=True)
    assert meter is None
    assert "no NVIDIA driver" in reason


# ---------------------------------------------------------------- what came of it


def test_idle_power_is_energy_over_time(tmp_path, monkeypatch):
    zone = _zone(tmp_path, "intel-rapl:0", "package-0", energy=0)
    meter = _meter(tmp_path)
    monkeypatch.setattr(sensors.time, "sleep", lambda _: _set(zone, 3_000_000))
    ticks = iter([100.0, 100.5])
    monkeypatch.setattr(sensors.time, "perf_counter", lambda: next(ticks))
    assert sensors.idle_w(meter) == pytest.approx(6.0)


def test_energy_of_an_inference_is_what_exceeds_idle():
    # 10 J in 2 s with 3 W idle: 4 J over 100 inferences
    assert sensors.per_inference_mj(10_000, 3.0, 2.0, 100) == pytest.approx(40.0)
    assert sensors.per_inference_mj(5_000, 3.0, 2.0, 100) is None
    assert sensors.per_inference_mj(5_000, 0.0, 2.0, 0) is None


# ---------------------------------------------------------------- memory of a process on the GPU


def test_gpu_memory_of_a_process():
    gpu = nvml_double.gpu()
    assert sensors.gpu_process_bytes(4711, gpu) == (600 * 2**20, None)


@pytest.mark.parametrize(
    ("pid", "answer", "words"),
    [
        (99, {4711: 5, 4712: 5}, "lists 2 processes on the GPU and none of them is 99"),
        (99, {}, "lists 0 processes"),
        (4712, {4712: 2**64 - 1}, "without its memory"),
        (1, Says(NO_PERMISSION), "NVML says 'Insufficient Permissions'"),
    ],
)
def test_gpu_memory_that_is_not_known_has_its_reason(pid, answer, words):
    gpu = nvml_double.gpu(nvmlDeviceGetComputeRunningProcesses_v3=answer)
    used, reason = sensors.gpu_process_bytes(pid, gpu)
    assert used is None
    assert words in reason


def test_gpu_memory_without_a_gpu(monkeypatch):
    monkeypatch.setattr(sensors._nvml, "first_gpu", lambda: (None, "no NVIDIA driver"))
    assert sensors.gpu_process_bytes(1) == (None, "no NVIDIA driver")
