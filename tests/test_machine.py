"""The parsers on lines of the form that real machines print, and the record put together."""

from __future__ import annotations

import json
import platform
import stat
import subprocess
import sys

import pytest

from mint_deploy import files, machine
from mint_deploy.artifacts import Machine

EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model name\t: AMD EPYC 9575F 64-Core Processor
cpu MHz\t\t: 2596.124
flags\t\t: fpu sse2 hypervisor avx2 avx512f avx512_vnni avx_vnni

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9575F 64-Core Processor
cpu MHz\t\t: 3296.500
flags\t\t: fpu sse2 hypervisor avx2 avx512f avx512_vnni avx_vnni
"""

ORIN_NANO = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

processor\t: 1
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""

JETSON_NANO = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 38.40
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32
CPU implementer\t: 0x41
CPU part\t: 0xd07
"""


def test_cpuinfo_of_a_virtual_x86_machine():
    assert machine.parse_cpuinfo(EPYC) == {
        "model": "AMD EPYC 9575F 64-Core Processor",
        "processors": 2,
        "mhz": 3296.5,
        "simd": ["avx2", "avx512f", "avx512_vnni", "avx_vnni"],
        "hypervisor": True,
    }


def test_cpuinfo_of_a_jetson_names_the_core_from_its_part_number():
    found = machine.parse_cpuinfo(ORIN_NANO)
    assert found["model"] == "Cortex-A78AE"
    assert found["simd"] == ["asimd", "asimddp"]
    assert found["mhz"] is None
    assert not found["hypervisor"]
    assert machine.parse_cpuinfo(JETSON_NANO)["model"] == "ARMv8 Processor rev 1 (v8l)"
    unknown = ORIN_NANO.replace("0xd42", "0xfff")
    assert machine.parse_cpuinfo(unknown)["model"] == "Arm part 0xfff"


def test_cpuinfo_of_nothing():
    assert machine.parse_cpuinfo("") == {
        "model": None, "processors": 0, "mhz": None, "simd": [], "hypervisor": False,
    }  # fmt: skip


def test_meminfo():
    text = "MemTotal:       24684092 kB\nMemFree:        1 kB\nMemAvailable:   24213674 kB\n"
    assert machine.parse_meminfo(text) == {
        "total_bytes": 24684092 * 1024,
        "available_bytes": 24213674 * 1024,
    }
    assert machine.parse_meminfo("SwapTotal: 0 kB") == {}


def test_load():
    assert machine.parse_load("0.13 1.08 12.00 2/91 7515\n") == {"1": 0.13, "5": 1.08, "15": 12.0}
    assert machine.parse_load("") == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("150000 100000", {"cores": 1.5}),
        ("max 100000", {}),
        ("-1 100000", {}),
        ("200000\n 50000", {"cores": 4.0}),
        ("0 100000", {}),
        ("", {}),
    ],
)
def test_cgroup_quota(text, found):
    assert machine.parse_cgroup_quota(text) == found


def test_nvidia_smi_of_a_server_and_of_a_board():
    server = "NVIDIA H200, 570.124.06, 143771, 345, 1980, 700.00\n" * 2
    assert machine.parse_nvidia_smi(server) == {
        "count": 2,
        "name": "NVIDIA H200",
        "driver_version": "570.124.06",
        "memory.total": 143771.0,
        "clocks.sm": 345.0,
        "clocks.max.sm": 1980.0,
        "power.limit": 700.0,
    }
    orin = "Orin (nvgpu), 540.4.0, [N/A], [N/A], [Not Supported], N/A\n"
    found = machine.parse_nvidia_smi(orin)
    assert found["name"] == "Orin (nvgpu)"
    assert [found[k] for k in ("memory.total", "clocks.sm", "power.limit")] == [None] * 3
    assert machine.parse_nvidia_smi("No devices were found\n") == {}
    assert machine.parse_nvidia_smi("") == {}


def test_l4t():
    jp6 = (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia"
    )
    jp4 = "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64"
    assert machine.parse_l4t(jp6) == {"l4t": "36.4.3"}
    assert machine.parse_l4t(jp4) == {"l4t": "32.7.1"}
    assert machine.parse_l4t("Ubuntu 22.04") == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NV Power Mode: MAXN\n0\n", {"name": "MAXN", "id": "0"}),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n", {"name": "MODE_15W", "id": "2"}),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n", {"name": "15W", "id": "0"}),
        ("NV Power Mode: MAXN_SUPER", {"name": "MAXN_SUPER"}),
        ("nvpmodel: command failed", {}),
    ],
)
def test_nvpmodel(text, found):
    assert machine.parse_nvpmodel(text) == found


# ---------------------------------------------------------------- put together


def _write(root, path, text):
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture
def empty_path(tmp_path, monkeypatch):
    """No command is found, unless a test puts it there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _command(folder, name, text, code=0):
    place = folder / name
    place.write_text(
        f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n".replace("cat", "/bin/cat")
    )
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
    assert files.read_value(tmp_path / "machine.json", Machine) == found


def test_every_field_that_is_none_has_its_reason(tmp_path, empty_path):
    found = machine.probe(tmp_path / "nothing")
    for name in ("board", "gpu", "governor", "frequency_mhz", "load_average", "power_mode",
                 "virtualization"):  # fmt: skip
        assert getattr(found, name) is None
        assert found.details["nulls"][name]
    assert found.memory_bytes == 0
    assert "MemTotal" in found.details["nulls"]["memory_bytes"]
    json.dumps(files.encode(found), allow_nan=False)


def test_a_jetson_is_recognised(tmp_path, empty_path):
    root = tmp_path / "root"
    _write(root, "proc/cpuinfo", ORIN_NANO)
    _write(root, "proc/meminfo", "MemTotal:        7800000 kB\n")
    _write(root, "proc/loadavg", "0.50 0.40 0.30 1/300 99")
    _write(root, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    _write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    _write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    _write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1510400\n")
    _command(empty_path, "nvidia-smi", "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], [N/A]")
    _command(empty_path, "nvpmodel", "NV Power Mode: 15W\n0")
    found = machine.probe(root)
    assert found.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.cpu == "Cortex-A78AE"
    assert found.gpu == "Orin (nvgpu)"
    assert found.power_mode == "15W"
    assert found.governor == "schedutil"
    assert found.frequency_mhz == 1510.4
    assert found.load_average == 0.5
    assert found.memory_bytes == 7800000 * 1024
    assert found.virtualization is None
    assert found.details["l4t"] == "36.4.3"
    assert found.details["nvpmodel"] == {"name": "15W", "id": "0"}
    assert not {"board", "gpu", "power_mode", "governor"} & set(found.details["nulls"])


def test_a_command_that_fails_or_is_absent_is_a_null(tmp_path, empty_path):
    _command(empty_path, "nvidia-smi", "NVIDIA-SMI has failed because ...", code=9)
    found = machine.probe(tmp_path)
    assert found.gpu is None
    assert "nvidia-smi" in found.details["nulls"]["gpu"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/fs/cgroup/cpu.max", "50000 100000"),
        ("sys/fs/cgroup/user.slice/job/cpu.max", "50000 100000"),
        ("sys/fs/cgroup/user.slice/cpu.max", "50000 100000"),
    ],
)
def test_the_quota_of_any_group_above_cuts_the_cores_down(tmp_path, empty_path, path, text):
    _write(tmp_path, "proc/self/cgroup", "0::/user.slice/job\n")
    _write(tmp_path, path, text)
    found = machine.probe(tmp_path)
    assert found.cores == 0.5
    assert found.details["cpu_quota_cores"] == 0.5


def test_the_quota_of_cgroup_v1(tmp_path, empty_path):
    _write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n")
    _write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert machine.probe(tmp_path).cores == 0.25
    _write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert machine.probe(tmp_path).details["cpu_quota_cores"] is None


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (".dockerenv", "", "container docker"),
        ("run/.containerenv", "", "container podman"),
        ("proc/1/cgroup", "0::/kubepods/besteffort/pod1", "container kubepods"),
        ("proc/cpuinfo", EPYC, "machine (hypervisor flag)"),
    ],
)
def test_containers_and_hypervisors(tmp_path, empty_path, path, text, found):
    _write(tmp_path, path, text)
    assert machine.probe(tmp_path).virtualization == found


def test_a_container_in_a_virtual_machine(tmp_path, empty_path):
    _write(tmp_path, ".dockerenv", "")
    _write(tmp_path, "proc/cpuinfo", EPYC)
    _write(tmp_path, "sys/class/dmi/id/product_name", "KVM\n")
    assert machine.probe(tmp_path).virtualization == "container docker in machine KVM"


def test_probing_imports_neither_torch_nor_onnxruntime():
    code = (
        "import sys; from mint_deploy.machine import probe; found = probe();"
        "assert found.versions.get('torch'), found.versions;"
        "bad = {'torch', 'onnxruntime'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
