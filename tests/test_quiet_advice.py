"""What would make a machine quieter: only what is due, the most effective first, each with its command."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import _quiet_advice
from mint_deploy._processes import Process
from mint_deploy.artifacts import Machine

CALM = {
    "steal": 0.0, "other_cpu": 0.0, "unseen_cpu": 0.0, "processes": (), "throttled": 0,
    "quota_stops": 0, "seconds": 10.0, "spread": 0.0,
}  # fmt: skip


def _machine(**changes) -> Machine:
    base = {"hostname": "h", "system": "s", "cpu": "c", "cores": 2.0, "memory_bytes": 1, "python": "3",
            "versions": {}, "governor": "performance"}  # fmt: skip
    return Machine(**{**base, **changes})


def _advice(machine=None, **changes):
    return _quiet_advice.advise(machine or _machine(), **{**CALM, **changes})


def test_a_calm_machine_is_told_one_thing_only():
    (only,) = _advice()
    assert "four times as long" in only.text
    nothing = dict.fromkeys(
        ("steal", "other_cpu", "unseen_cpu", "throttled", "quota_stops", "spread")
    )
    assert _advice(_machine(governor=None), **nothing) == (only,)


TRAIN = Process(name="python train.py", pids=(40, 41), cores=1.2)
KERNEL = Process(name="[kswapd0]", pids=(9,), cores=0.5, kernel=True)
ENDED = Process(name="cc1", pids=(), cores=0.3)
LITTLE = Process(name="sshd", pids=(3,), cores=0.01)


@pytest.mark.parametrize(
    ("machine", "seen", "words", "command"),
    [
        ({}, {"processes": (TRAIN, KERNEL, LITTLE)}, "python train.py (1.2 cores)", "kill -STOP 40 41"),
        ({}, {"processes": (ENDED,)}, "cc1 (0.3 cores)", "ps -eo pcpu,pid,args --sort=-pcpu"),
        ({}, {"unseen_cpu": 0.5}, "0.5 cores of others' work cannot be seen", "top -b -n 1 | head -20"),
        ({}, {"steal": 0.05}, "5.0% of the CPU time", "vmstat 1 10"),
        ({}, {"quota_stops": 3}, "CPU quota", "docker update --cpus 0 CONTAINER"),
        ({}, {"throttled": 1}, "slowed itself down", "sudo cpupower frequency-set -u 2.0GHz"),
        ({"governor": "powersave"}, {}, "'powersave'", "sudo cpupower frequency-set -g performance"),
        ({"details": {"turbo": True, "frequency_driver": "intel_cpufreq"}}, {}, "turbo",
         "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"),
        ({"details": {"turbo": True, "frequency_driver": "amd-pstate-epp"}}, {}, "turbo",
         "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"),
        ({"details": {"smt": True}}, {}, "SMT",
         "echo off | sudo tee /sys/devices/system/cpu/smt/control"),
        ({"details": {"jetson": {"clocks_held": False}}}, {}, "follow the load", "sudo jetson_clocks"),
        ({"details": {"gpu": {"sm_mhz": 345, "sm_max_mhz": 1980}}}, {}, "idles at 345 of 1980 MHz",
         "sudo nvidia-smi --lock-gpu-clocks=1485"),
        ({"details": {"gpu": {"persistence": False}}}, {}, "unloaded",
         "sudo nvidia-smi --persistence-mode=1"),
    ],
)  # fmt: skip
def test_each_is_given_alone_with_its_command(machine, seen, words, command):
    first, last = _advice(_machine(**machine), **seen)
    assert words in first.text
    assert first.command == command
    assert first.weight > last.weight == 0.0


@pytest.mark.parametrize(
    ("machine", "seen"),
    [
        ({"details": {"turbo": True, "frequency_min_mhz": 2e3, "frequency_max_mhz": 2e3}}, {}),
        ({"details": {"turbo": False, "smt": False}}, {}),
        ({"details": {"jetson": {"clocks_held": True}}}, {}),
        ({"details": {"gpu": {"sm_mhz": 1900, "sm_max_mhz": 1980, "persistence": True}}}, {}),
        ({}, {"processes": (KERNEL, LITTLE)}),
        ({}, {"steal": 0.001, "unseen_cpu": 0.05}),
    ],
)
def test_what_is_in_order_needs_no_advice(machine, seen):
    assert len(_advice(_machine(**machine), **seen)) == 1


def test_what_was_seen_to_disturb_goes_before_settings():
    machine = _machine(governor="powersave", details={"turbo": True, "smt": True})
    found = _advice(machine, processes=(TRAIN,), other_cpu=1.2, steal=0.1, spread=0.5)
    commands = [advice.command.split()[0] for advice in found]
    assert commands[:2] == ["kill", "vmstat"]
    assert commands[-1] == "mint-deploy"


def test_in_a_container_settings_are_the_hosts():
    machine = _machine(
        governor="powersave",
        virtualization="container docker in machine KVM",
        details={"turbo": True},
    )
    assert sum("on the host" in advice.text for advice in _advice(machine)) == 2


def test_a_restless_machine_is_told_to_stay_on_one_core(monkeypatch):
    monkeypatch.setattr(_quiet_advice.os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    (pin, _) = _advice(spread=0.05)
    assert pin.command == "taskset -c 5 mint-deploy bench ..."
    # but not beside others, from whom it could then no longer flee
    assert len(_advice(spread=0.05, other_cpu=1.0)) == 1
    monkeypatch.setattr(_quiet_advice.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert len(_advice(spread=0.05)) == 1


def test_not_every_process_of_a_crowd_is_named():
    crowd = Process(name="pytest", pids=tuple(range(100, 200)), cores=2.0)
    command = _advice(processes=(crowd,) * 5)[0].command
    assert len(shlex.split(command)) == 2 + 3 * 8


@given(
    steal=st.none() | st.floats(0, 1),
    unseen=st.none() | st.floats(0, 64),
    cores=st.lists(st.floats(0, 64), max_size=6),
    throttled=st.none() | st.integers(0, 99),
    stops=st.none() | st.integers(0, 999),
    spread=st.none() | st.floats(0, 3),
    governor=st.none() | st.sampled_from(["performance", "schedutil"]),
    allowed=st.floats(0.1, 64),
)
def test_advice_is_ordered_and_none_weighs_more_than_everything(
    steal, unseen, cores, throttled, stops, spread, governor, allowed
):
    processes = tuple(Process(name=f"p{n}", pids=(n + 5,), cores=c) for n, c in enumerate(cores))
    found = _advice(
        _machine(governor=governor, cores=allowed), steal=steal, unseen_cpu=unseen,
        other_cpu=sum(cores), processes=processes, throttled=throttled, quota_stops=stops,
        spread=spread,
    )  # fmt: skip
    weights = [advice.weight for advice in found]
    assert weights == sorted(weights, reverse=True)
    assert all(0 <= weight <= 1 for weight in weights)
    assert all(advice.command.strip() and advice.text.strip() for advice in found)
