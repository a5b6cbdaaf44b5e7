"""Each doubt comes with its number, and only when it is due."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mint_deploy import doubts
from mint_deploy.artifacts import Machine


def _quiet(**changes) -> Machine:
    base = Machine(
        hostname="h", system="s", cpu="c", cores=8, memory_bytes=1, python="3", versions={},
        governor="performance", load_average=0.1,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


STEADY = tuple(tuple(1000 + (i * 7919) % 20 for i in range(60)) for _ in range(5))


def test_a_quiet_machine_and_steady_latencies_leave_no_doubt():
    assert doubts.doubts(STEADY, _quiet(), interleaved=True) == ()


@pytest.mark.parametrize(
    ("restarts", "machine", "settings", "words"),
    [
        (STEADY, {}, {"converged": False}, "not converged"),
        (STEADY[:4], {}, {"interleaved": True}, "4 restarts: the interval is to be trusted from 5"),
        ([(1000, 1300) * 30], {}, {}, "spans 2.% of the median"),
        ([tuple(range(1000, 1120))], {}, {}, r"drifts by \+8%"),
        ([*STEADY[:4], (1200,) * 60], {}, {}, "medians of the restarts lie 19% apart"),
        (STEADY, {"load_average": 9.5}, {}, "load average 9.5 on 8 cores"),
        (STEADY, {"governor": "powersave"}, {}, "governor is 'powersave'"),
        (STEADY, {"cores": 2.0}, {"threads": 2}, "2 threads take every core"),
    ],
)
def test_each_doubt_comes_alone_with_its_number(restarts, machine, settings, words):
    found = doubts.doubts(restarts, _quiet(**machine), **settings)
    assert len(found) == 1
    assert re.search(words, found[0]), found
