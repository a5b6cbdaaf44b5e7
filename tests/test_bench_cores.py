"""Which cores a restart computes on."""

from __future__ import annotations

import os

import pytest

from mint_deploy import _bench_cores
from mint_deploy._bench_cores import cores_of, on_gpu


@pytest.fixture
def allowed(monkeypatch):
    def allow(*cores):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores), raising=False)

    return allow


def test_two_restarts_stay_on_a_core_and_then_the_next_has_its_turn(allowed, tmp_path):
    allowed(0, 1)
    assert [cores_of(r, 1, tmp_path) for r in range(6)] == [(0,), (0,), (1,), (1,), (0,), (0,)]
    allowed(3, 5, 9)
    assert [cores_of(r, 1, tmp_path) for r in range(0, 8, 2)] == [(3,), (5,), (9,), (3,)]


def test_as_many_cores_as_threads_and_every_core_gets_its_turn(allowed, tmp_path):
    allowed(*range(5))
    found = [cores_of(r, 2, tmp_path) for r in range(0, 10, 2)]
    assert found == [(0, 1), (2, 3), (0, 4), (1, 2), (3, 4)]


@pytest.mark.parametrize("wanted", [2, 3, 0])
def test_where_every_core_is_needed_none_is_chosen(allowed, tmp_path, wanted):
    allowed(0, 1)
    assert cores_of(0, wanted, tmp_path) is None


def test_a_system_without_affinity(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores_of(0, 1, tmp_path) is None


def _limits(root, **mhz):
    for cpu, limit in mhz.items():
        folder = root / "sys/devices/system/cpu" / cpu / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(f"{limit}\n")


def test_slow_cores_of_a_mixed_processor_are_left_out(allowed, tmp_path):
    allowed(0, 1, 2, 3)
    _limits(tmp_path, cpu0=1_500_000, cpu1=1_500_000, cpu2=2_000_000, cpu3=1_980_000)
    assert {cores_of(r, 1, tmp_path) for r in range(8)} == {(2,), (3,)}
    assert cores_of(0, 2, tmp_path) is None


def test_limits_that_cannot_be_read_leave_all_cores(allowed, tmp_path):
    allowed(0, 1)
    _limits(tmp_path, cpu0=1_500_000)
    assert {cores_of(r, 1, tmp_path) for r in range(4)} == {(0,), (1,)}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_on_this_machine_they_are_cores_that_it_may_use():
    mine = os.sched_getaffinity(0)
    for restart in range(2 * len(mine)):
        found = cores_of(restart, 1)
        assert found is None if len(mine) == 1 else set(found) <= mine


@pytest.mark.parametrize(
    ("runtime", "gpu"),
    [("onnxruntime", False), ("openvino", False), ("null", False), ("tensorrt", True),
     ("onnxruntime_cuda", True), ("onnxruntime_tensorrt", True)],
)  # fmt: skip
def test_which_runtimes_compute_on_a_gpu(runtime, gpu):
    assert on_gpu(runtime) is gpu
    assert _bench_cores.on_gpu(f"their.package.{runtime}") is gpu
