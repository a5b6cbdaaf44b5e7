"""Trees of /proc and /sys as machines show them, written under a folder."""

from __future__ import annotations

from pathlib import Path

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

#: the form of an AGX Orin's file, shortened: three modes, and what stands between them
NVPMODEL_CONF = """\
< PARAM TYPE=FILE NAME=TPC_POWER_GATING >
TPC_PG_MASK /sys/devices/gpu.0/tpc_pg_mask

< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
TPC_POWER_GATING TPC_PG_MASK 0
GPU MAX_FREQ -1

< POWER_MODEL ID=1 NAME=MODE_15W >
TPC_POWER_GATING TPC_PG_MASK 248
GPU MAX_FREQ 420750000

< POWER_MODEL ID=2 NAME=MODE_30W >
TPC_POWER_GATING TPC_PG_MASK 240
GPU MAX_FREQ 624750000

< PM_CONFIG DEFAULT=2 >
"""


def write(root: Path, path: str, text: object) -> Path:
    """Write one file of a tree."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{text}")
    return place


def cpufreq(root: Path, cpu: int = 0, **values: object) -> None:
    """Write files of one CPU's cpufreq folder."""
    for name, value in values.items():
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}", f"{value}\n")


def workstation(root: Path) -> None:
    """An Intel machine on the metal: two CPUs with intel_pstate."""
    write(root, "proc/cpuinfo", EPYC.replace(" hypervisor", "").replace("AMD EPYC", "Some"))
    write(root, "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    write(root, "proc/loadavg", "0.50 0.40 0.30 1/300 99")
    for cpu in (0, 1):
        cpufreq(
            root, cpu, scaling_governor="powersave", scaling_cur_freq=1_800_000 + cpu,
            scaling_min_freq=800_000, scaling_max_freq=3_600_000, cpuinfo_min_freq=800_000,
            cpuinfo_max_freq=4_900_000, scaling_driver="intel_pstate",
            energy_performance_preference="balance_performance",
        )  # fmt: skip
    write(root, "sys/devices/system/cpu/intel_pstate/no_turbo", "0\n")
    write(root, "sys/devices/system/cpu/smt/active", "1\n")


def stat(root: Path, *, busy: int, idle: int, steal: int = 0, cpus: int = 2) -> None:
    """Write /proc/stat with these ticks over all CPUs."""
    lines = [f"cpu  {busy} 0 0 {idle} 0 0 0 {steal} 0 0"]
    lines += [f"cpu{n} {busy // cpus} 0 0 {idle // cpus} 0 0 0 0 0 0" for n in range(cpus)]
    write(root, "proc/stat", "\n".join([*lines, "intr 12345 0 0", "ctxt 99"]) + "\n")


def process(
    root: Path, pid: int | str, ticks: int, *, name: str = "x", parent: int = 1, start: int = 5
) -> None:
    """Write /proc/PID/stat of a process that has used ``ticks``, half of them in the kernel."""
    user, system = ticks - ticks // 2, ticks // 2
    fields = f"S {parent} 1 1 0 -1 4194304 0 0 0 0 {user} {system} 0 0 20 0 1 0 {start} 0"
    write(root, f"proc/{pid}/stat", f"{pid} ({name}) {fields}\n")


def jetson(root: Path, *, held: bool = False, mask: int | None = 240) -> None:
    """An AGX Orin in a mode that switches TPCs off."""
    write(root, "proc/cpuinfo", ORIN_NANO)
    write(root, "proc/meminfo", "MemTotal:        7800000 kB\n")
    write(root, "proc/loadavg", "0.50 0.40 0.30 1/300 99")
    write(root, "proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    write(root, "proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    write(root, "etc/nvpmodel.conf", NVPMODEL_CONF)
    low = 1_510_400 if held else 729_600
    cpufreq(
        root, scaling_governor="schedutil", scaling_cur_freq=1_510_400, scaling_min_freq=low,
        scaling_max_freq=1_510_400,
    )  # fmt: skip
    for end, hz in (("min", 624_750_000 if held else 306_000_000), ("max", 624_750_000),
                    ("cur", 306_000_000)):  # fmt: skip
        write(root, f"sys/class/devfreq/17000000.gpu/{end}_freq", hz)
    write(root, "sys/class/devfreq/13e00000.vic/cur_freq", 1)
    if mask is not None:
        write(root, "sys/devices/gpu.0/tpc_pg_mask", f"{mask}\n")
