"""Each doubt comes with its number and its remedy, and only when it is due."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import doubts
from mint_deploy.artifacts import Machine, MachineState


def _quiet(**changes) -> Machine:
    base = Machine(
        hostname="h", system="s", cpu="c", cores=8, memory_bytes=1, python="3", versions={},
        governor="performance", load_average=0.1,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def _details(**details) -> dict:
    return {"details": details}


STEADY = tuple(tuple(1000 + (i * 7919) % 20 for i in range(60)) for _ in range(5))
CALM = MachineState(
    load_average=0.5, steal=0.0, other_cpu=0.02, frequency_mhz=3000.0, throttled=0,
    temperature_c=50.0, gpu_mhz=1400.0, quota_stops=0,
)  # fmt: skip


def _seen(**changes) -> list[MachineState]:
    """Five looks; a change is one value for all, or a list with one a look."""
    return [
        dataclasses.replace(
            CALM, **{k: v[i] if isinstance(v, list) else v for k, v in changes.items()}
        )
        for i in range(5)
    ]


def test_a_quiet_machine_and_steady_latencies_leave_no_doubt():
    assert doubts.doubts(STEADY, _quiet(), interleaved=True) == ()
    assert doubts.doubts(STEADY, _quiet(), interleaved=True, states=_seen()) == ()
    assert doubts.doubts(STEADY, _quiet(), states=[MachineState()] * 5) == ()


BOARD = {"sms_off": 8, "widest_mode": {"id": 3, "name": "MAXN"}, "clocks_held": True}


@pytest.mark.parametrize(
    ("restarts", "machine", "settings", "begins", "remedy"),
    [
        (STEADY, {}, {"converged": False}, "not converged", "measure for longer"),
        (STEADY[:4], {}, {"interleaved": True}, "4 restarts: the interval is to be trusted from 5",
         "--restarts 5"),
        ([(1000, 1300) * 30], {}, {}, r"the middle half of the latencies spans 2\d% of the median",
         "doctor --machine"),
        ([tuple(range(1000, 1120))], {}, {}, r"latency drifts by \+8%", "let it cool"),
        ([tuple(range(1120, 1000, -1))], {}, {}, "latency drifts by -7%", "warm up for longer"),
        ([*STEADY[:4], (1200,) * 60], {}, {}, "the medians of the restarts lie 19% apart",
         "more restarts"),
        (STEADY, {"load_average": 9.5}, {}, "load average 9.5 on 8 cores", "names it"),
        (STEADY, {"governor": "powersave"}, {}, "the CPU governor is 'powersave', not 'performance'",
         "sudo cpupower frequency-set -g performance"),
        (STEADY, {"cores": 2.0}, {"threads": 2}, "2 threads take every core", "--threads 1"),
        (STEADY, {"cores": 1.5}, {"threads": 4}, r"4 threads take every core \(1.5\)", "--threads 3"),
        (STEADY, _details(turbo=True, frequency_driver="intel_pstate"), {}, "CPU turbo is on: ",
         "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"),
        (STEADY, _details(turbo=True, frequency_min_mhz=800.0, frequency_max_mhz=4000.0), {},
         r"CPU turbo is on \(limits 800 to 4000 MHz\)",
         "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"),
        (STEADY, {**_details(jetson=BOARD), "power_mode": "15W"}, {},
         "8 SMs fewer than this board has are switched on in power mode 15W", "sudo nvpmodel -m 3"),
        (STEADY, _details(jetson={"clocks_held": False, "gpu_min_mhz": 306.0, "gpu_max_mhz": 1300.5}),
         {}, r"the board's clocks are not locked \(GPU 306 to 1300 MHz\)", "sudo jetson_clocks"),
        (STEADY, {}, {"states": _seen(throttled=[0, 2, 0, 1, 0], temperature_c=[60, 97, 90, 9, 9])},
         r"the processor slowed itself down 3 times while it was measured \(hottest 97 °C\)", "cool it"),
        (STEADY, {}, {"states": [MachineState(throttled=1)]}, "the processor slowed itself down once",
         "cool it"),
        (STEADY, _details(cpu_quota_cores=1.5), {"states": _seen(quota_stops=[0, 0, 7, 0, 0])},
         "the CPU quota of 1.5 cores stopped the measuring 7 times", "docker run --cpus"),
        (STEADY, {}, {"states": _seen(steal=[0.0, 0.0, 0.1, 0.0, 0.0])},
         r"the hypervisor gave 2.0% of the CPU time to others \(over 1%; 10.0% in the worst",
         "cores of its own"),
        (STEADY, {}, {"states": _seen(other_cpu=[0.0, 0.0, 0.0, 0.0, 4.0])},
         "other processes used 0.8 cores on average", "stop them"),
        (STEADY, _details(gpu={"sm_mhz": 345, "sm_max_mhz": 1980}), {"states": _seen(gpu_mhz=1755.0)},
         "the GPU's clocks are not locked: seen between 345 and 1755 MHz",
         "sudo nvidia-smi --lock-gpu-clocks=1485"),
        (STEADY, {}, {"states": _seen(gpu_mhz=[1900, 1980, 1980, 1980, 1980])},
         "the GPU's clocks are not locked: seen between 1900 and 1980 MHz", "--lock-gpu-clocks=MHZ"),
    ],
)  # fmt: skip
def test_each_doubt_comes_alone_with_its_number_and_its_remedy(
    restarts, machine, settings, begins, remedy
):
    found = doubts.doubts(restarts, _quiet(**machine), **settings)
    assert len(found) == 1, found
    assert re.match(begins, found[0]), found
    said, _, advice = found[0].rpartition("; ")
    assert remedy in advice, found
    assert re.match(begins, said)


@pytest.mark.parametrize(
    ("machine", "states"),
    [
        # clocks whose limits are equal do not move, whatever turbo would allow
        (_details(turbo=True, frequency_min_mhz=2e3, frequency_max_mhz=2e3), ()),
        (_details(turbo=False), ()),
        (_details(turbo=None), ()),
        (_details(jetson={"clocks_held": True, "sms_off": 0}), ()),
        (_details(jetson={"clocks_held": None, "sms_off": None}), ()),
        # a locked GPU shows one clock, within the noise of its reading; nobody looked: no doubt
        (_details(gpu={"sm_mhz": 1395}), _seen(gpu_mhz=[1395, 1400, 1395, 1395, 1395])),
        (_details(gpu={"sm_mhz": 345}), ()),
        ({}, _seen(steal=0.009, other_cpu=0.09)),
    ],
)
def test_what_is_in_order_is_not_doubted(machine, states):
    assert doubts.doubts(STEADY, _quiet(**machine), states=states) == ()


def test_in_a_container_the_knobs_are_the_hosts():
    machine = _quiet(
        governor="powersave", virtualization="container docker", details={"turbo": True}
    )
    governor, turbo = doubts.doubts(STEADY, machine)
    assert governor.endswith("-g performance on the host")
    assert turbo.endswith("boost on the host")
    metal = dataclasses.replace(machine, virtualization="machine KVM")
    assert not any("on the host" in text for text in doubts.doubts(STEADY, metal))


_MAYBE = st.none() | st.floats(0, 5)


@given(
    states=st.lists(
        st.builds(
            MachineState, load_average=_MAYBE, steal=st.none() | st.floats(0, 1), other_cpu=_MAYBE,
            frequency_mhz=_MAYBE, throttled=st.none() | st.integers(0, 9), temperature_c=_MAYBE,
            gpu_mhz=_MAYBE, quota_stops=st.none() | st.integers(0, 9),
        ),
        max_size=4,
    ),
    load=_MAYBE,
    converged=st.booleans(),
)  # fmt: skip
def test_every_doubt_has_a_number_or_a_name_and_a_remedy(states, load, converged):
    machine = _quiet(load_average=load)
    for text in doubts.doubts(STEADY, machine, converged=converged, states=states):
        assert "; " in text
        assert re.search(r"\d|once|not converged", text)
        assert not text.endswith((".", ";"))
        assert "None" not in text
        assert "nan" not in text


def test_an_old_measurement_without_looks_can_be_doubted_anew():
    machine = _quiet(details={"gpu": {"clocks.sm": 345.0}, "nulls": {}})
    assert doubts.doubts((), machine) == ()
    assert doubts.doubts(((), ()), machine, states=()) == ()
