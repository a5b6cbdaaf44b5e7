"""The record put together, and the fingerprint that decides what may be compared."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import stat
import subprocess
import sys

import nvml_double
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import files, machine
from mint_deploy.artifacts import Machine


@pytest.fixture
def empty_path(tmp_path, monkeypatch):
    """No command is found, unless a test puts it there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _command(folder, name, text, code=0):
    place = folder / name
    place.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\nexit {code}\n")
    place.chmod(place.stat().st_mode | stat.S_IXUSR)


def test_this_machine_is_described_and_survives_json(tmp_path):
    found = machine.probe()
    assert found.hostname == platform.node()
    assert found.cores > 0
    assert found.memory_bytes > 2**26
    assert found.python == platform.python_version()
    assert {"mint-deploy", "numpy", "onnxruntime", "torch"} <= set(found.versions)
    for name, reason in found.details["nulls"].items():
        assert len(reason) > 10, name
    files.write_value(tmp_path / "machine.json", found)
    read = files.read_value(tmp_path / "machine.json", Machine)
    assert read == found
    assert read.fingerprint() == found.fingerprint() == machine.probe().fingerprint()


def _gaps(found):
    """Every field that is None, by the name under which its reason stands."""
    flat = {k: v for k, v in dataclasses.asdict(found).items() if k != "details"}
    for name, value in found.details.items():
        if name in ("gpu", "jetson"):
            flat.update({f"{name}.{k}": v for k, v in value.items()})
        elif name != "nulls":
            flat[name] = value
    return {name for name, value in flat.items() if value is None}


def test_every_field_that_is_none_has_its_reason(tmp_path, empty_path):
    found = machine.probe(tmp_path / "nothing")
    assert {"board", "gpu", "governor", "frequency_mhz", "load_average", "power_mode", "turbo",
            "virtualization", "cpu_quota_cores", "energy", "smt"} <= _gaps(found)  # fmt: skip
    assert _gaps(found) <= set(found.details["nulls"])
    assert all(len(reason) > 10 for reason in found.details["nulls"].values())
    assert found.memory_bytes == 0
    assert "MemTotal" in found.details["nulls"]["memory_bytes"]
    json.dumps(files.encode(found), allow_nan=False)


def test_a_workstation_with_a_gpu(tmp_path, empty_path):
    trees.workstation(tmp_path)
    trees.stat(tmp_path, busy=50, idle=40, steal=10)
    no_mig = {"nvmlDeviceGetMigMode": nvml_double.Says(nvml_double.NOT_SUPPORTED)}
    found = machine.probe(tmp_path, gpu=nvml_double.gpu(**no_mig))
    assert found.gpu == "NVIDIA H100 80GB HBM3"
    assert found.governor == "powersave"
    assert found.frequency_mhz == 1800.001
    assert found.details["turbo"] is True
    assert found.details["frequency_max_mhz"] == 3600.0
    assert found.details["steal_since_boot"] == 0.1
    assert found.details["gpu"]["power_limit_w"] == 700.0
    assert found.details["gpu"]["mig"] is None
    assert "Not Supported" in found.details["nulls"]["gpu.mig"]
    assert _gaps(found) <= set(found.details["nulls"])
    assert not {"governor", "frequency_mhz", "mhz", "turbo"} & set(found.details["nulls"])


def test_a_jetson_is_recognised(tmp_path, empty_path):
    root = tmp_path / "root"
    trees.jetson(root)
    _command(empty_path, "nvpmodel", "NV Power Mode: MODE_30W\n2")
    found = machine.probe(root)
    assert found.board == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found.cpu == "Cortex-A78AE"
    assert found.gpu == "Tegra234 (integrated)"
    assert found.power_mode == "MODE_30W"
    assert found.governor == "schedutil"
    assert found.frequency_mhz == 1510.4
    assert found.load_average == 0.5
    assert found.memory_bytes == 7800000 * 1024
    assert found.virtualization is None
    assert found.details["jetson"]["l4t"] == "36.4.3"
    assert found.details["jetson"]["sms_off"] == 8
    assert found.details["nvpmodel"] == {"name": "MODE_30W", "id": "2"}
    assert not {"board", "gpu", "power_mode", "governor"} & set(found.details["nulls"])
    assert _gaps(found) <= set(found.details["nulls"])


def test_a_command_that_fails_is_a_null(tmp_path, empty_path):
    _command(empty_path, "nvpmodel", "NV Power Mode: MAXN", code=9)
    found = machine.probe(tmp_path)
    assert found.power_mode is None
    assert "nvpmodel" in found.details["nulls"]["power_mode"]


def test_cores_are_the_affinity_cut_down_by_the_quota(tmp_path, empty_path):
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert machine.probe(tmp_path).cores == mine
    trees.write(tmp_path, "sys/fs/cgroup/cpu.max", "50000 100000")
    found = machine.probe(tmp_path)
    assert found.cores == 0.5
    assert found.details["cpu_quota_cores"] == 0.5
    assert found.details["affinity_cores"] == mine
    trees.write(tmp_path, "sys/fs/cgroup/cpu.max", f"{100000 * (mine + 3)} 100000")
    assert machine.probe(tmp_path).cores == mine


def test_probing_imports_neither_torch_nor_onnxruntime():
    code = (
        "import sys; from mint_deploy.machine import probe; found = probe();"
        "assert found.versions.get('torch'), found.versions;"
        "bad = {'torch', 'onnxruntime', 'onnx'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- what may be compared


def _base(**details) -> Machine:
    return Machine(
        hostname="h", system="s", cpu="c", cores=8, memory_bytes=1, python="3.10",
        versions={"numpy": "2.0", "onnx": "1.20"}, gpu="g", details=details,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"details": {"turbo": True}}, "turbo"),
        ({"details": {"smt": True}}, "smt"),
        ({"details": {"frequency_max_mhz": 3000.0}}, "frequency_max_mhz"),
        ({"details": {"frequency_min_mhz": 3000.0}}, "frequency_min_mhz"),
        ({"details": {"energy_preference": "power"}}, "energy_preference"),
        ({"details": {"cpu_quota_cores": 2.0}}, "cpu_quota_cores"),
        ({"details": {"gpu": {"driver_version": "570"}}}, "gpu_driver"),
        ({"details": {"gpu": {"power_limit_w": 300.0}}}, "gpu_power_limit_w"),
        ({"details": {"gpu": {"sm_applications_mhz": 1200}}}, "gpu_sm_applications_mhz"),
        ({"details": {"gpu": {"mig": True}}}, "gpu_mig"),
        ({"details": {"jetson": {"tpc_pg_mask": 240}}}, "jetson_tpc_pg_mask"),
        ({"details": {"jetson": {"clocks_held": True}}}, "jetson_clocks_held"),
        ({"details": {"jetson": {"l4t": "36.4.3"}}}, "jetson_l4t"),
        ({"virtualization": "container docker"}, "virtualization"),
        ({"governor": "performance"}, "governor"),
        ({"power_mode": "15W"}, "power_mode"),
        ({"hostname": "other"}, "hostname"),
        ({"versions": {"numpy": "2.1", "onnx": "1.20"}}, "versions"),
    ],
)
def test_what_is_set_decides(change, field):
    old, new = _base().fingerprint(), dataclasses.replace(_base(), **change).fingerprint()
    assert {k for k in old if old[k] != new[k]} == {field}


@pytest.mark.parametrize(
    "change",
    [
        {"load_average": 5.0},
        {"frequency_mhz": 900.0},
        {"memory_bytes": 7},
        {"details": {"kernel": "6.1", "load": {"1": 3.0}, "steal_since_boot": 0.2}},
        {"details": {"gpu": {"sm_mhz": 345, "persistence": True}, "nulls": {"turbo": "?"}}},
        {"details": {"jetson": {"gpu_mhz": 306.0}}},
        {"details": {"gpu": None, "jetson": "damaged"}},
        {"versions": {"numpy": "2.0", "onnx": "1.23"}},
    ],
)
def test_what_is_so_at_the_moment_does_not(change):
    assert dataclasses.replace(_base(), **change).fingerprint() == _base().fingerprint()


_PLAIN = st.none() | st.booleans() | st.floats(0, 5000) | st.text(max_size=8)


@given(
    details=st.dictionaries(
        st.sampled_from(
            ["turbo", "smt", "frequency_max_mhz", "cpu_quota_cores", "kernel", "nulls"]
        ),
        _PLAIN,
    ),
    gpu=st.none() | st.dictionaries(st.sampled_from(["power_limit_w", "mig", "sm_mhz"]), _PLAIN),
    damaged=_PLAIN,
)
def test_a_record_that_was_written_and_read_may_be_compared_with_itself(details, gpu, damaged):
    record = _base(**details, gpu=gpu, jetson=damaged)
    written = json.loads(json.dumps(files.encode(record)))
    read = files.decode(Machine, written)
    assert read.fingerprint() == record.fingerprint()
    assert set(read.fingerprint()) == set(_base().fingerprint())


def test_records_of_schema_1_agree_among_themselves():
    # as schema 1 wrote it on a server with a GPU: none of the newer settings
    old = _base(
        architecture="x86_64", kernel="6.8", processors=8, cpu_quota_cores=None, simd=["avx2"],
        smt=True, load={"1": 0.1}, nulls={},
        gpu={"count": 1, "name": "NVIDIA H200", "driver_version": "570.124.06", "clocks.sm": 345.0},
    )  # fmt: skip
    later = dataclasses.replace(old, details={**old.details, "kernel": "6.9", "load": {"1": 3.0}})
    assert old.fingerprint() == later.fingerprint()
    assert old.fingerprint() != _base(smt=True, turbo=False).fingerprint()
