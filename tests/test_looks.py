"""What happened between two looks, on recorded trees and on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import nvml_double
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import _nvml, looks
from mint_deploy.artifacts import MachineState

CPU = "sys/devices/system/cpu/cpu{}"
THERMAL = "sys/class/thermal"


@pytest.fixture
def tree(tmp_path):
    """A machine of two CPUs at its start; this process has used 100 ticks."""
    trees.workstation(tmp_path)
    trees.stat(tmp_path, busy=1000, idle=1000)
    trees.process(tmp_path, "self", 100)
    return tmp_path


# ---------------------------------------------------------------- CPU time


def test_ticks_of_a_process_count_those_of_children_it_has_waited_for():
    fields = "S 1 1 1 0 -1 4194304 9 9 9 9 11 22 33 44 20 0 1 0 5 0"
    assert looks.parse_pid_stat(f"7 (cat) {fields}") == 110
    assert looks.parse_pid_stat(f"7 (a) b (c d) {fields}") == 110
    assert looks.parse_pid_stat("") is None
    assert looks.parse_pid_stat("7 (cat) S 1 2") is None
    assert looks.parse_pid_stat(f"7 (cat) {fields.replace('33', 'x')}") is None


@pytest.mark.parametrize(
    ("now", "own", "expected"),
    [
        # 400 ticks passed on 2 CPUs: 2 s
        ({"busy": 1200, "idle": 1200}, 300, {"steal": 0.0, "other_cpu": 0.0}),
        ({"busy": 1200, "idle": 1200}, 100, {"steal": 0.0, "other_cpu": 1.0}),
        ({"busy": 1200, "idle": 1200}, 200, {"steal": 0.0, "other_cpu": 0.5}),
        ({"busy": 1200, "idle": 1180, "steal": 20}, 300, {"steal": 0.05, "other_cpu": 0.0}),
        # a tick more of one's own than was busy: rounding, not a negative neighbour
        ({"busy": 1199, "idle": 1201}, 300, {"steal": 0.0, "other_cpu": 0.0}),
        # no tick has passed: nothing can be said
        ({"busy": 1000, "idle": 1000}, 100, {"steal": None, "other_cpu": None}),
    ],
)
def test_steal_and_the_cpu_of_others(tree, now, own, expected):
    watch = looks.Watch(tree)
    trees.stat(tree, **now)
    trees.process(tree, "self", own)
    found = watch.look()
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)


def test_each_look_speaks_of_the_time_since_the_last(tree):
    watch = looks.Watch(tree)
    trees.stat(tree, busy=1200, idle=1200)
    assert watch.look().other_cpu == pytest.approx(1.0)
    trees.stat(tree, busy=1200, idle=1600)
    assert watch.look().other_cpu == 0.0
    trees.stat(tree, busy=1300, idle=1600, steal=100)
    assert watch.look() == MachineState(
        load_average=0.5, steal=0.5, other_cpu=1.0, frequency_mhz=1800.001
    )


def test_children_that_run_are_ones_own_and_theirs_too(tree):
    watch = looks.Watch(tree)
    trees.stat(tree, busy=1200, idle=1200)
    trees.write(tree, "proc/self/task/1/children", "50 ")
    trees.write(tree, "proc/50/task/50/children", "51 52")
    trees.write(tree, "proc/50/task/53/children", "54")
    for pid, ticks in ((50, 20), (51, 30), (52, 40), (54, 10)):
        trees.process(tree, pid, ticks, name="a) b (c")
    assert watch.look().other_cpu == pytest.approx((200 - 100) / 400 * 2)


def test_processes_that_are_named_are_ones_own_once(tree):
    watch = looks.Watch(tree)
    trees.stat(tree, busy=1200, idle=1200)
    trees.process(tree, 60, 100)
    trees.write(tree, "proc/self/task/1/children", "60")
    assert watch.look([60, 60, 61]).other_cpu == pytest.approx(0.5)


def test_a_child_that_ended_goes_on_counting(tree):
    trees.process(tree, 60, 100)
    watch = looks.Watch(tree)
    trees.stat(tree, busy=1100, idle=1100)
    assert watch.look([60]).other_cpu == 0.0
    # it ran for 100 more, ended, and was waited for: now it stands in our own line
    (tree / "proc/60/stat").unlink()
    trees.process(tree, "self", 100 + 200)
    trees.stat(tree, busy=1200, idle=1200)
    assert watch.look().other_cpu == 0.0


_STEPS = st.lists(st.tuples(*[st.integers(0, 500)] * 4), min_size=1, max_size=6)


@given(steps=_STEPS, cpus=st.integers(1, 8))
def test_all_time_is_ours_or_theirs_or_stolen_or_idle(tmp_path_factory, steps, cpus):
    """Over any course of the counters the looks add up to it: no tick is lost, none counted twice."""
    root = tmp_path_factory.mktemp("tree")
    busy, idle, steal, own = 0, 1, 0, 0
    trees.stat(root, busy=busy, idle=idle, steal=steal, cpus=cpus)
    trees.process(root, "self", own)
    watch = looks.Watch(root)
    theirs = taken = 0.0
    for mine, other, idler, stolen in steps:
        busy, idle, steal, own = busy + mine + other, idle + idler, steal + stolen, own + mine
        trees.stat(root, busy=busy, idle=idle, steal=steal, cpus=cpus)
        trees.process(root, "self", own)
        found, total = watch.look(), mine + other + idler + stolen
        assert (found.other_cpu is None) == (total == 0)
        if total:
            assert 0 <= found.steal <= 1
            assert 0 <= found.other_cpu <= cpus
            theirs += found.other_cpu * total / cpus
            taken += found.steal * total
    assert theirs == pytest.approx(sum(step[1] for step in steps))
    assert taken == pytest.approx(steal)


def test_a_machine_that_tells_nothing(tmp_path):
    watch = looks.Watch(tmp_path)
    assert watch.look() == MachineState()
    assert set(watch.nulls) == set(MachineState.__slots__)
    assert all(len(reason) > 10 for reason in watch.nulls.values())


@given(st.binary(max_size=200) | st.text("cpu01 .\n():x-", max_size=200).map(str.encode))
def test_no_file_upsets_a_look(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("tree")
    watch = looks.Watch(root)
    for path in ("proc/stat", "proc/self/stat", "proc/loadavg", "proc/cpuinfo"):
        trees.write(root, path, "").write_bytes(data)
    watch.look([1])


# ---------------------------------------------------------------- clocks, heat, throttling


def test_the_fastest_clock_counts_and_without_cpufreq_that_of_cpuinfo(tree, tmp_path_factory):
    trees.cpufreq(tree, 1, scaling_cur_freq=3_600_000)
    assert looks.Watch(tree).look().frequency_mhz == 3600.0
    other = tmp_path_factory.mktemp("virtual")
    trees.write(other, "proc/cpuinfo", trees.EPYC)
    watch = looks.Watch(other)
    assert watch.look().frequency_mhz == 3296.5
    assert watch.mhz() == 3296.5


def test_cores_and_packages_that_throttle(tree):
    for cpu in (0, 1):
        trees.write(tree, f"{CPU.format(cpu)}/topology/physical_package_id", 0)
        for what in ("core", "package"):
            trees.write(tree, f"{CPU.format(cpu)}/thermal_throttle/{what}_throttle_count", 10)
    watch = looks.Watch(tree)
    assert watch.look().throttled == 0
    for cpu in (0, 1):  # the package's event shows on each of its CPUs
        trees.write(tree, f"{CPU.format(cpu)}/thermal_throttle/package_throttle_count", 13)
    trees.write(tree, f"{CPU.format(1)}/thermal_throttle/core_throttle_count", 12)
    assert watch.look().throttled == 3 + 2
    assert watch.look().throttled == 0


def test_a_boards_over_current_events(tree):
    place = "sys/class/hwmon/hwmon3/oc1_event_cnt"
    trees.write(tree, place, 4)
    watch = looks.Watch(tree)
    trees.write(tree, place, 6)
    assert watch.look().throttled == 2


def test_cooling_devices_that_hold_a_processor_back(tree):
    devices = ("pwm-fan", "thermal-cpufreq-0", "17000000.gpu-devfreq", "TCC Offset", "Processor")
    for n, kind in enumerate(devices):
        trees.write(tree, f"{THERMAL}/cooling_device{n}/type", kind)
        trees.write(tree, f"{THERMAL}/cooling_device{n}/cur_state", 3 if n in (0, 3) else 0)
    watch = looks.Watch(tree)
    assert watch.look().throttled == 0
    trees.write(tree, f"{THERMAL}/cooling_device1/cur_state", 2)
    trees.write(tree, f"{THERMAL}/cooling_device4/cur_state", 1)
    assert watch.look().throttled == 2


def test_temperatures_are_the_chips_where_any_is(tree):
    for n, (kind, value) in enumerate((("acpitz", 99_000), ("x86_pkg_temp", 61_000))):
        trees.write(tree, f"{THERMAL}/thermal_zone{n}/type", kind)
        trees.write(tree, f"{THERMAL}/thermal_zone{n}/temp", value)
    trees.write(tree, "sys/class/hwmon/hwmon1/name", "coretemp")
    trees.write(tree, "sys/class/hwmon/hwmon1/temp1_input", 64_500)
    trees.write(tree, "sys/class/hwmon/hwmon1/temp2_input", -256_000)  # a sensor that is off
    assert looks.Watch(tree).look().temperature_c == 64.5


def test_any_zone_is_better_than_none(tree):
    trees.write(tree, f"{THERMAL}/thermal_zone0/type", "acpitz")
    trees.write(tree, f"{THERMAL}/thermal_zone0/temp", 41_000)
    assert looks.Watch(tree).look().temperature_c == 41.0


def test_a_quota_that_stopped_the_group(tree):
    trees.write(tree, "proc/self/cgroup", "0::/job\n")
    trees.write(tree, "sys/fs/cgroup/job/cpu.stat", "nr_periods 5\nnr_throttled 2\n")
    watch = looks.Watch(tree)
    assert watch.look().quota_stops == 0
    trees.write(tree, "sys/fs/cgroup/job/cpu.stat", "nr_periods 9\nnr_throttled 5\n")
    assert watch.look().quota_stops == 3


# ---------------------------------------------------------------- GPUs


def test_a_gpus_clock_heat_and_limits(tree):
    library = nvml_double.Library()
    watch = looks.Watch(tree, gpu=_nvml.open_gpu(library))
    assert "gpu_mhz" not in watch.nulls
    found = watch.look()
    assert (found.gpu_mhz, found.temperature_c, found.throttled) == (345.0, 41.0, 0)
    library.answers["nvmlDeviceGetViolationStatus"] = {_nvml.POWER: 5_000_000, _nvml.HEAT: 1}
    library.answers["nvmlDeviceGetClockInfo"] = {_nvml.SM: 1755}
    found = watch.look()
    assert (found.gpu_mhz, found.throttled) == (1755.0, 2)
    assert watch.look().throttled == 0


def test_a_gpu_that_tells_little(tree):
    no = nvml_double.Says(nvml_double.NOT_SUPPORTED)
    gpu = nvml_double.gpu(
        nvmlDeviceGetViolationStatus=no, nvmlDeviceGetClockInfo=no, nvmlDeviceGetTemperature=no
    )
    watch = looks.Watch(tree, gpu=gpu)
    found = watch.look()
    assert found.gpu_mhz is found.throttled is found.temperature_c is None
    assert {"gpu_mhz", "throttled", "temperature_c"} <= set(watch.nulls)


def test_a_boards_gpu(tmp_path):
    trees.jetson(tmp_path)
    watch = looks.Watch(tmp_path)
    assert watch.look().gpu_mhz == 306.0
    trees.write(tmp_path, "sys/class/devfreq/17000000.gpu/cur_freq", 624_750_000)
    assert watch.look().gpu_mhz == 624.75


# ---------------------------------------------------------------- this machine


def _spin(seconds: float) -> list[str]:
    code = f"import time; t = time.process_time()\nwhile time.process_time() - t < {seconds}: pass"
    return [sys.executable, "-c", code]


def test_ones_own_work_is_not_anothers():
    """Two looks around the same work: done by a child it is ours, and what is ours is not theirs."""
    hz, watch = os.sysconf("SC_CLK_TCK"), looks.Watch()
    if "other_cpu" in watch.nulls:
        pytest.skip("this system tells no CPU times")
    before, begin = watch._before, time.perf_counter()
    subprocess.run(_spin(0.4), check=True)
    found = watch.look()
    own = watch._before.own_ticks - before.own_ticks
    passed = time.perf_counter() - begin
    assert own >= 0.4 * hz - 2
    busy = watch._before.ticks["busy"] - before.ticks["busy"]
    # whatever else runs here: all that was busy is either ours or theirs
    total = watch._before.ticks["total"] - before.ticks["total"]
    assert found.other_cpu == pytest.approx(
        max(busy - own, 0) / total * watch._before.ticks["cpus"], abs=1e-9
    )
    assert passed > 0.4


def test_a_child_that_runs_is_seen_without_being_named():
    watch = looks.Watch()
    if not (os.path.exists(f"/proc/self/task/{os.getpid()}/children")):  # noqa: PTH110  as a user sees it
        pytest.skip("this kernel does not list children")
    with subprocess.Popen(_spin(30)) as child:
        first = watch._read(()).own_ticks
        deadline = time.monotonic() + 20
        while watch._read(()).own_ticks < first + 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert watch._read(()).own_ticks >= first + 20
        child.kill()


def test_a_look_is_cheap():
    watch = looks.Watch()
    spent = []
    for _ in range(40):
        begin = time.process_time()
        watch.look()
        spent.append(time.process_time() - begin)
    # 0.5 ms here; the margin is for a machine that does other things
    assert sorted(spent)[len(spent) // 2] < 0.01


@pytest.mark.gpu
def test_a_real_gpu_is_looked_at():
    watch = looks.Watch()
    found = watch.look()
    assert found.gpu_mhz is not None
    assert found.gpu_mhz > 0
    assert found.temperature_c is not None
