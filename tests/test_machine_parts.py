"""The parsers of the machine record, on lines of the form that real machines print."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import _cgroup, _machine_board, _machine_cpu, _machine_versions, _sysfs
from mint_deploy._machine_where import virtualization

JETSON_NANO = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 38.40
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32
CPU implementer\t: 0x41
CPU part\t: 0xd07
"""

# ---------------------------------------------------------------- files


def test_numbers_of_files(tmp_path):
    for text, found in (("12\n", 12), ("-5", -5), ("0x1f\n", 31), ("x", None), ("", None)):
        assert _sysfs.number(trees.write(tmp_path, "n", text)) == found
    assert _sysfs.number(tmp_path / "absent") is None
    assert _sysfs.number(tmp_path) is None


def test_texts_of_files(tmp_path):
    place = trees.write(tmp_path, "t", "NVIDIA Jetson\0\n")
    assert _sysfs.text(place) == _sysfs.head(place) == "NVIDIA Jetson"
    assert _sysfs.head(place, 6) == "NVIDIA"
    assert _sysfs.text(tmp_path / "absent") is _sysfs.head(tmp_path / "absent") is None


# ---------------------------------------------------------------- the processor


def test_cpuinfo_of_a_virtual_x86_machine():
    assert _machine_cpu.parse_cpuinfo(trees.EPYC) == {
        "model": "AMD EPYC 9575F 64-Core Processor",
        "processors": 2,
        "mhz": 3296.5,
        "simd": ["avx2", "avx512f", "avx512_vnni", "avx_vnni"],
        "hypervisor": True,
    }


def test_cpuinfo_of_a_jetson_names_the_core_from_its_part_number():
    found = _machine_cpu.parse_cpuinfo(trees.ORIN_NANO)
    assert found["model"] == "Cortex-A78AE"
    assert found["simd"] == ["asimd", "asimddp"]
    assert found["mhz"] is None
    assert not found["hypervisor"]
    assert _machine_cpu.parse_cpuinfo(JETSON_NANO)["model"] == "ARMv8 Processor rev 1 (v8l)"
    unknown = trees.ORIN_NANO.replace("0xd42", "0xfff")
    assert _machine_cpu.parse_cpuinfo(unknown)["model"] == "Arm part 0xfff"


def test_cpuinfo_of_nothing():
    found = _machine_cpu.parse_cpuinfo("")
    assert list(found.values()) == [None, 0, None, [], False]


def test_meminfo():
    text = "MemTotal:       24684092 kB\nMemFree:        1 kB\nMemAvailable:   24213674 kB\n"
    assert _machine_cpu.parse_meminfo(text) == {
        "total_bytes": 24684092 * 1024,
        "available_bytes": 24213674 * 1024,
    }
    assert _machine_cpu.parse_meminfo("SwapTotal: 0 kB") == {}


def test_load():
    read = _machine_cpu.parse_load("0.13 1.08 12.00 2/91 7515\n")
    assert read == {"1": 0.13, "5": 1.08, "15": 12.0}
    assert _machine_cpu.parse_load("") == _machine_cpu.parse_load("1.2.3 4 5") == {}


def test_cpu_times():
    text = "cpu  1783459 197580 105176 405992 3989 1 837 6250 50 60\ncpu0 1 2\ncpu1 1 2\nintr 5\n"
    assert _machine_cpu.parse_stat(text) == {
        "busy": 1783459 + 197580 + 105176 + 1 + 837,
        "steal": 6250,
        "total": 1783459 + 197580 + 105176 + 405992 + 3989 + 1 + 837 + 6250,
        "cpus": 2,
    }
    # old kernels have fewer columns; sandboxes show zeros, or nothing
    assert _machine_cpu.parse_stat("cpu 10 0 5 85\ncpu0 10 0 5 85")["total"] == 100
    assert _machine_cpu.parse_stat("cpu  0 0 0 0 0 0 0 0 0 0\n") == {}
    assert _machine_cpu.parse_stat("") == {}


@given(st.text() | st.text("cpu019.- \n:=\"'<>", max_size=60))
def test_no_text_upsets_a_parser(text):
    _machine_cpu.parse_cpuinfo(text)
    _machine_cpu.parse_meminfo(text)
    _machine_cpu.parse_load(text)
    _machine_cpu.parse_stat(text)
    _cgroup.parse_quota(text)
    _cgroup.parse_stops(text)
    _machine_board.parse_l4t(text)
    _machine_board.parse_modes(text)
    _machine_board.parse_nvpmodel(text)
    _machine_versions.parse_torch_cuda(text)


def test_the_clocks_of_a_workstation(tmp_path):
    trees.workstation(tmp_path)
    found, reasons = _machine_cpu.clocks(tmp_path)
    assert reasons == {}
    assert found == {
        "governor": "powersave",
        "mhz": 1800.001,
        "frequency_min_mhz": 800.0,
        "frequency_max_mhz": 3600.0,
        "hardware_min_mhz": 800.0,
        "hardware_max_mhz": 4900.0,
        "frequency_driver": "intel_pstate",
        "energy_preference": "balance_performance",
        "turbo": True,
        "smt": True,
    }


def test_cpus_that_differ_are_all_told(tmp_path):
    trees.workstation(tmp_path)
    trees.cpufreq(tmp_path, 1, scaling_governor="performance", scaling_max_freq=2_000_000)
    found, _ = _machine_cpu.clocks(tmp_path)
    assert found["governor"] == "performance, powersave"
    assert found["frequency_max_mhz"] == 3600.0


@pytest.mark.parametrize(
    ("path", "text", "turbo"),
    [
        ("intel_pstate/no_turbo", "1", False),
        ("intel_pstate/no_turbo", "0", True),
        ("cpufreq/boost", "0", False),
        ("cpufreq/boost", "1", True),
        ("cpu0/cpufreq/boost", "0", False),
    ],
)
def test_turbo_of_each_driver(tmp_path, path, text, turbo):
    trees.write(tmp_path, f"sys/devices/system/cpu/{path}", text)
    assert _machine_cpu.clocks(tmp_path)[0]["turbo"] is turbo


def test_clocks_that_nobody_tells_have_their_reason(tmp_path):
    found, reasons = _machine_cpu.clocks(tmp_path)
    assert set(found.values()) == {None}
    assert set(reasons) == set(found)
    assert "virtual machine" in reasons["governor"]
    trees.cpufreq(tmp_path, scaling_governor="performance")
    assert "does not tell" in _machine_cpu.clocks(tmp_path)[1]["frequency_max_mhz"]


# ---------------------------------------------------------------- quota


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("150000 100000", 1.5),
        ("max 100000", None),
        ("-1 100000", None),
        ("200000\n 50000", 4.0),
        ("0 100000", None),
        ("", None),
    ],
)
def test_quota(text, cores):
    assert _cgroup.parse_quota(text) == cores


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        ("0::/user.slice/job\n", "sys/fs/cgroup/cpu.max"),
        ("0::/user.slice/job\n", "sys/fs/cgroup/user.slice/job/cpu.max"),
        ("0::/user.slice/job\n", "sys/fs/cgroup/user.slice/cpu.max"),
        ("", "sys/fs/cgroup/cpu.max"),
    ],
)
def test_the_quota_of_any_group_above_counts(tmp_path, groups, path):
    trees.write(tmp_path, "proc/self/cgroup", groups)
    trees.write(tmp_path, "sys/fs/cgroup/user.slice/job/cpu.max", "max 100000")
    trees.write(tmp_path, path, "50000 100000")
    assert _cgroup.quota_cores(tmp_path) == 0.5


def test_the_smallest_quota_counts(tmp_path):
    trees.write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    for path, quota in (("a/b", 300), ("a", 50), (".", 200)):
        trees.write(tmp_path, f"sys/fs/cgroup/{path}/cpu.max", f"{quota} 100")
    assert _cgroup.quota_cores(tmp_path) == 0.5


@pytest.mark.parametrize(
    ("groups", "folder"),
    [
        ("", "cpu"),
        ("4:memory:/a\n1:cpu,cpuacct:/docker/7\n", "cpu,cpuacct/docker/7"),
        ("1:cpu,cpuacct:/docker/7\n", "cpu"),
        ("1:cpu:/docker/7\n", "cpu"),
    ],
)
def test_the_quota_of_cgroup_v1(tmp_path, groups, folder):
    trees.write(tmp_path, "proc/self/cgroup", groups)
    place = f"sys/fs/cgroup/{folder}"
    trees.write(tmp_path, f"{place}/cpu.cfs_quota_us", "25000\n")
    trees.write(tmp_path, f"{place}/cpu.cfs_period_us", "100000\n")
    assert _cgroup.quota_cores(tmp_path) == 0.25
    trees.write(tmp_path, f"{place}/cpu.cfs_quota_us", "-1\n")
    assert _cgroup.quota_cores(tmp_path) is None


def test_other_controllers_grant_nothing(tmp_path):
    trees.write(tmp_path, "proc/self/cgroup", "3:cpuset:/x\n9:name=systemd:/\nnonsense\n")
    trees.write(tmp_path, "sys/fs/cgroup/cpuset/x/cpu.max", "1000 100000")
    assert _cgroup.quota_cores(tmp_path) is None


def test_stops_are_those_of_the_nearest_group(tmp_path):
    trees.write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    trees.write(tmp_path, "sys/fs/cgroup/cpu.stat", "usage_usec 9\nnr_throttled 70\n")
    folders = _cgroup.folders(tmp_path)
    assert [str(f.relative_to(tmp_path)) for f in folders[:3]] == [
        "sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup",
    ]  # fmt: skip
    assert _cgroup.stops(folders) == 70
    trees.write(tmp_path, "sys/fs/cgroup/a/b/cpu.stat", "nr_periods 9\nnr_throttled 3\n")
    assert _cgroup.stops(folders) == 3
    assert _cgroup.stops([]) is None


# ---------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (".dockerenv", "", "container docker"),
        ("run/.containerenv", "", "container podman"),
        ("run/systemd/container", "lxc\n", "container lxc"),
        ("proc/1/cgroup", "0::/kubepods/besteffort/pod1", "container kubepods"),
        ("sys/class/dmi/id/sys_vendor", "QEMU", "machine (hypervisor flag)"),
        (
            "sys/class/dmi/id/product_name",
            "VMware Virtual Platform",
            "machine VMware Virtual Platform",
        ),
        ("sys/hypervisor/type", "xen", "machine xen"),
        ("proc/sys/kernel/osrelease", "5.15.90.1-microsoft-standard-WSL2", "machine WSL"),
        ("sys/class/dmi/id/product_name", "ThinkStation P3", None),
    ],
)
def test_containers_and_virtual_machines(tmp_path, path, text, found):
    trees.write(tmp_path, path, text)
    assert virtualization(tmp_path, hypervisor=False) == found


def test_a_cloud_machine_on_arm_and_one_on_the_metal(tmp_path):
    trees.write(tmp_path, "sys/class/dmi/id/sys_vendor", "Amazon EC2")
    trees.write(tmp_path, "sys/class/dmi/id/product_name", "c7g.xlarge")
    assert virtualization(tmp_path, hypervisor=False) == "machine c7g.xlarge"
    trees.write(tmp_path, "sys/class/dmi/id/product_name", "c7g.metal")
    assert virtualization(tmp_path, hypervisor=False) is None


def test_a_container_in_a_virtual_machine(tmp_path):
    trees.write(tmp_path, ".dockerenv", "")
    assert (
        virtualization(tmp_path, hypervisor=True) == "container docker in machine (hypervisor flag)"
    )
    trees.write(tmp_path, "sys/class/dmi/id/product_name", "KVM\n")
    assert virtualization(tmp_path, hypervisor=True) == "container docker in machine KVM"


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = '12.8'", "12.8"),
        ('cuda = "11.4"', "11.4"),
        ("cuda: Optional[str] = None", None),
        ("cudnn = '9'", None),
    ],
)
def test_torch_tells_its_cuda_without_being_imported(line, cuda):
    text = f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n"
    assert _machine_versions.parse_torch_cuda(text) == cuda


def test_a_boards_libraries_tell_their_versions(tmp_path):
    for name in ("libnvinfer.so.10", "libnvinfer.so.10.3.0", "libcudnn.so.9.3.0"):
        trees.write(tmp_path, f"usr/lib/aarch64-linux-gnu/{name}", "")
    trees.write(tmp_path, "usr/local/cuda/version.json", '{"cuda": {"version": "12.6.68"}}')
    found = _machine_versions.versions(tmp_path)
    assert (found["tensorrt"], found["cudnn"], found["cuda"]) == ("10.3.0", "9.3.0", "12.6.68")
    for text in ("{", "[]", '{"cuda": 5}'):
        trees.write(tmp_path, "usr/local/cuda/version.json", text)
        assert "cuda" not in _machine_versions.versions(tmp_path)


def test_versions_of_this_installation():
    found = _machine_versions.versions(Path("/"))
    assert {"mint-deploy", "numpy", "onnx", "onnxruntime", "torch"} <= set(found)
    if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
        assert found["glibc"][0].isdigit()
