"""The remedies that doubts and ``doctor --machine`` share."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import _advice
from mint_deploy.artifacts import Machine


def _machine(virtualization=None, **details) -> Machine:
    return Machine(
        hostname="h", system="s", cpu="c", cores=2, memory_bytes=1, python="3", versions={},
        virtualization=virtualization, details=details,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("virtualization", "said"),
    [
        (None, ""),
        ("machine KVM", ""),
        ("container docker", " on the host"),
        ("container podman in machine KVM", " on the host"),
    ],
)
def test_where_the_knobs_are(virtualization, said):
    assert _advice.where(_machine(virtualization)) == said


@pytest.mark.parametrize(
    ("driver", "file"),
    [
        ("intel_pstate", "intel_pstate/no_turbo"),
        ("intel_cpufreq", "intel_pstate/no_turbo"),
        ("acpi-cpufreq", "cpufreq/boost"),
        ("amd-pstate-epp", "cpufreq/boost"),
        (None, "cpufreq/boost"),
    ],
)
def test_turbo_goes_off_by_the_drivers_own_file(driver, file):
    command = _advice.turbo_off(_machine(frequency_driver=driver))
    assert command.endswith(f"/sys/devices/system/cpu/{file}")
    # each file means the opposite of the other
    assert command.startswith("echo 1" if "no_turbo" in file else "echo 0")


@given(highest=st.integers(300, 4000))
def test_a_gpu_is_locked_at_a_step_of_its_clock_that_it_can_hold(highest):
    command = _advice.lock_gpu(_machine(gpu={"sm_max_mhz": highest}))
    mhz = int(re.fullmatch(r"sudo nvidia-smi --lock-gpu-clocks=(\d+)", command)[1])
    assert mhz % 15 == 0
    assert 0.7 * highest - 15 <= mhz <= 0.75 * highest


@pytest.mark.parametrize("gpu", [None, {}, {"sm_max_mhz": None}, "damaged", {"sm_max_mhz": "1980"}])
def test_a_gpu_that_does_not_tell_its_clock(gpu):
    assert _advice.lock_gpu(_machine(gpu=gpu)) == "sudo nvidia-smi --lock-gpu-clocks=MHZ"


def test_parts_of_the_record():
    assert _advice.part(_machine(gpu={"name": "g"}), "gpu") == {"name": "g"}
    for damaged in (None, 5, [1], "gpu"):
        assert _advice.part(_machine(gpu=damaged), "gpu") == {}
    assert _advice.part(_machine(), "gpu") == {}
