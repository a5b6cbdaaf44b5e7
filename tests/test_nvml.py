"""The questions to NVML against a double of the library, and against one that a C compiler made."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import nvml_double
import pytest
from nvml_double import NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED, Library, Says

from mint_deploy import _machine_gpu, _nvml


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    _nvml.first_gpu.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    _nvml.first_gpu.cache_clear()


def test_a_gpu_describes_itself():
    found, reasons = _machine_gpu.describe(nvml_double.gpu())
    assert reasons == {}
    assert found == {
        "name": "NVIDIA H100 80GB HBM3",
        "count": 2,
        "driver_version": "570.124.06",
        "cuda": "12.8",
        "memory_bytes": 85520809984,
        "sm_mhz": 345,
        "sm_max_mhz": 1980,
        "sm_applications_mhz": 1980,
        "memory_mhz": 2619,
        "memory_max_mhz": 2619,
        "power_limit_w": 700.0,
        "power_limit_default_w": 700.0,
        "persistence": True,
        "compute_mode": "default",
        "mig": False,
        "ecc": True,
        "energy_counter": True,
    }


def test_what_one_question_does_not_answer_costs_only_its_field():
    gpu = nvml_double.gpu(
        nvmlDeviceGetApplicationsClock=Says(NOT_SUPPORTED),
        nvmlDeviceGetMigMode=Ellipsis,
        nvmlDeviceGetPowerManagementLimit=Says(NO_PERMISSION),
        nvmlDeviceGetComputeMode=9,
    )
    found, reasons = _machine_gpu.describe(gpu)
    assert found["name"] == "NVIDIA H100 80GB HBM3"
    assert found["compute_mode"] == "mode 9"
    assert {k for k, v in found.items() if v is None} == set(reasons)
    assert reasons == {
        "sm_applications_mhz": "NVML says 'Not Supported' to nvmlDeviceGetApplicationsClock",
        "mig": "this driver has no nvmlDeviceGetMigMode",
        "power_limit_w": "NVML says 'Insufficient Permissions' to nvmlDeviceGetPowerManagementLimit",
    }


def test_an_error_without_words_keeps_its_number():
    library = Library(nvmlInit_v2=Says(9))
    del library.nvmlErrorString
    with pytest.raises(_nvml.NvmlError, match="error 9"):
        _nvml.open_gpu(library)


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, ("nvmlDeviceGetHandleByIndex_v2", 0)),
        ("3", ("nvmlDeviceGetHandleByIndex_v2", 3)),
        (" 1 ,0", ("nvmlDeviceGetHandleByIndex_v2", 1)),
        ("GPU-8a2f", ("nvmlDeviceGetHandleByUUID", b"GPU-8a2f")),
        ("MIG-77aa,MIG-2", ("nvmlDeviceGetHandleByUUID", b"MIG-77aa")),
    ],
)
def test_the_gpu_is_the_first_that_the_process_may_see(visible, asked):
    library = Library()
    gpu = _nvml.open_gpu(library, visible)
    assert library.asked[1][:2] == asked
    gpu.persistence()
    handle = library.asked[-1][1].value
    expected = {"G": 0xFEED, "M": 0xBEEF}.get((visible or "0").strip()[0], 0x5EED)
    assert handle == expected


@pytest.mark.parametrize("visible", ["", "-1", "none"])
def test_no_gpu_is_seen_where_all_are_hidden(visible):
    with pytest.raises(_nvml.NvmlError, match=f"CUDA_VISIBLE_DEVICES is '{visible}'"):
        _nvml.open_gpu(Library(), visible)


def test_first_gpu_says_why_there_is_none(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(_nvml.ctypes, "CDLL", absent)
    assert _nvml.first_gpu() == (None, "no NVIDIA driver: libnvidia-ml.so.1 is not here")


def test_first_gpu_is_opened_once_with_the_environment(monkeypatch):
    library = Library()
    monkeypatch.setattr(_nvml.ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    gpu, reason = _nvml.first_gpu()
    assert reason is None
    assert gpu.name() == "NVIDIA H100 80GB HBM3"
    assert _nvml.first_gpu()[0] is gpu
    assert [call[0] for call in library.asked].count("nvmlInit_v2") == 1
    assert library.asked[1][1] == 1


def test_a_driver_that_does_not_start_is_a_reason(monkeypatch):
    monkeypatch.setattr(_nvml.ctypes, "CDLL", lambda name: Library(nvmlInit_v2=Says(NOT_FOUND)))
    gpu, reason = _nvml.first_gpu()
    assert gpu is None
    assert reason == "NVML says 'Not Found' to nvmlInit_v2"


def test_processes_by_the_newest_of_the_three_interfaces():
    assert nvml_double.gpu().processes() == {4711: 600 * 2**20, 4712: None}
    name = "nvmlDeviceGetComputeRunningProcesses"
    for version in ("_v2", ""):
        gone = {f"{name}_v3": Ellipsis, f"{name}_v2": Ellipsis, name + version: {7: 8}}
        assert nvml_double.gpu(**gone).processes() == {7: 8}
    with pytest.raises(_nvml.NvmlError, match="has no nvmlDeviceGetComputeRunningProcesses"):
        nvml_double.gpu(**{f"{name}_v3": Ellipsis}).processes()


def test_more_processes_than_there_was_room_for():
    many = {pid: pid * 1000 for pid in range(1, 201)}
    gpu = nvml_double.gpu(nvmlDeviceGetComputeRunningProcesses_v3=many)
    assert gpu.processes() == many


C_DOUBLE = r"""
#include <string.h>
typedef void *dev;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } proc;
typedef struct { unsigned long long total, free, used; } mem;
typedef struct { unsigned long long reference, violation; } viol;
static int one;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, dev *d) { if (i > 1) return 2; *d = &one; return 0; }
const char *nvmlErrorString(int code) { return code == 2 ? "Invalid Argument" : "Other"; }
int nvmlDeviceGetName(dev d, char *s, unsigned int n) {
    if (d != &one || n < 8) return 2;
    strcpy(s, "Double"); return 0; }
int nvmlDeviceGetMemoryInfo(dev d, mem *m) { m->total = 5; m->free = 3; m->used = 2; return 0; }
int nvmlDeviceGetClockInfo(dev d, int kind, unsigned int *mhz) { *mhz = 100 * kind; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(dev d, unsigned long long *mj) { *mj = 1ULL << 40; return 0; }
int nvmlDeviceGetViolationStatus(dev d, int policy, viol *v) {
    v->reference = 1; v->violation = (1ULL << 33) + policy; return 0; }
int nvmlDeviceGetMigMode(dev d, unsigned int *now, unsigned int *later) { *now = 1; *later = 0; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(dev d, unsigned int *n, proc *p) {
    unsigned int i, have = 40, room = *n;
    *n = have;
    if (room < have) return 7;
    for (i = 0; i < have; i++) { p[i].pid = i; p[i].used = (1ULL << 34) + i; p[i].gi = p[i].ci = ~0u; }
    return 0; }
"""


def test_layouts_are_those_of_c(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = tmp_path / "double.c", tmp_path / "libdouble.so"
    source.write_text(C_DOUBLE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    double = ctypes.CDLL(str(library))
    gpu = _nvml.open_gpu(double)
    assert gpu.name() == "Double"
    assert gpu.memory_bytes() == 5
    assert gpu.clock_mhz(_nvml.MEMORY) == 200
    assert gpu.energy_mj() == 2**40
    assert gpu.held_back_ns(_nvml.HEAT) == 2**33 + 1
    assert gpu.mig() is True
    assert gpu.processes() == {i: 2**34 + i for i in range(40)}
    with pytest.raises(
        _nvml.NvmlError, match="'Invalid Argument' to nvmlDeviceGetHandleByIndex_v2"
    ):
        _nvml.open_gpu(double, "5")
    with pytest.raises(_nvml.NvmlError, match="this driver has no nvmlDeviceGetPersistenceMode"):
        gpu.persistence()


@pytest.mark.gpu
def test_a_real_gpu_answers():
    gpu, reason = _nvml.first_gpu()
    assert gpu is not None, reason
    found, reasons = _machine_gpu.describe(gpu)
    assert found["name"].startswith("NVIDIA")
    assert found["memory_bytes"] > 2**30
    assert found["driver_version"].count(".") >= 1
    for name, why in reasons.items():
        assert found[name] is None, name
        assert len(why) > 10, name
    assert 0 < found["sm_mhz"] <= found["sm_max_mhz"]
    assert 0 < gpu.temperature_c() < 120
