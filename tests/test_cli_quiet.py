"""``mint-deploy doctor --machine``: what it prints, and how it ends."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import cli, quiet
from mint_deploy._processes import Process
from mint_deploy._quiet_advice import Advice
from mint_deploy.artifacts import Machine
from mint_deploy.quiet import Difference, Quiet, Slowdown, Timer

# the module, not a function of this name
shown = importlib.import_module("mint_deploy.cli.quiet")

MACHINE = Machine(
    hostname="h", system="Linux x86_64", cpu="Some CPU", cores=2.0, memory_bytes=1, python="3.11",
    versions={"numpy": "2.0", "onnxruntime": "1.20"}, governor="powersave",
    virtualization="container docker",
    details={
        "turbo": True, "smt": None, "frequency_min_mhz": 800.0, "frequency_max_mhz": 3600.0,
        "kernel": "6.1", "cpu_quota_cores": 2.0,
        "nulls": {"board": "not a board", "power_mode": "not a board", "gpu": "no driver"},
    },
)  # fmt: skip
FOUND = Quiet(
    machine=MACHINE,
    seconds=10.04,
    interrupted=False,
    runs=3812,
    piece_ns=2_030_000,
    blocks_ns=(2.04e6, 2.05e6, 2.04e6, 2.35e6, 2.05e6, 2.04e6, 2.06e6, 2.05e6),
    log_ratios=(0.001, -0.002, 0.001, 0.004, -0.001, 0.0, 0.002, -0.003),
    slowdown=Slowdown(median=0.012, p95=0.041, worst=2.1),
    spread=0.01,
    difference=Difference(value=0.0085, low=0.0061, high=0.0158, seconds=60.0, restarts=47),
    steal=0.0031,
    other_cpu=0.42,
    unseen_cpu=0.05,
    processes=tuple(
        Process(name=f"python train{n}.py", pids=(n,), cores=0.3 / (n + 1)) for n in range(6)
    ),
    frequency_mhz=(1800.0, 3600.0),
    throttled=None,
    quota_stops=3,
    timer=Timer(name="CLOCK_MONOTONIC", resolution_ns=1.0, step_ns=20, reading_ns=52.4),
    overhead_ns=310.2,
    states=(),
    nulls={"throttled": "no throttle counter in /sys"},
    doubts=(),
    advice=(
        Advice(text="stop what else runs", command="kill -STOP 0 1 2", weight=0.5),
        Advice(text="whatever remains", command="mint-deploy bench", weight=0.0),
    ),
)


def _text(found: Quiet, width: int = 100) -> str:
    return "\n".join("".join(piece for piece, _ in line) for line in shown.lines(found, width))


def _flat(found: Quiet) -> str:
    return " ".join(_text(found).split())


@pytest.mark.parametrize(
    "said",
    [
        "This machine is quiet: a comparison of 60 s sees differences from 0.85 % on",
        "0.85 % on (between 0.61 % and 1.6 %); smaller ones stay inconclusive.",
        "3,812 of the same work, 2.03 ms the fastest, in 8 blocks and 10.0 s",
        "median +1.2 %, 95th percentile +4.1 %, worst +210 %",
        "▁▁▁█▁▁▁▁ medians from 2.04 ms to 2.35 ms",
        "0.31 % of the CPU time went to other machines",
        "0.42 of 2 cores: python train0.py 0.30, python train1.py 0.15",
        "python train4.py 0.06, 1 more, 0.05 without a name here",
        "1800 to 3600 MHz while it worked",
        "not readable here: no throttle counter in /sys",
        "stopped 3 times",
        "CLOCK_MONOTONIC; resolves 1.00 ns, moves in steps of 20.0 ns at the least",
        "a reading takes 52.4 ns",
        "the harness itself takes 310 ns a call",
        "1. stop what else runs kill -STOP 0 1 2 2. whatever remains mint-deploy bench",
        "Some CPU, 2 cores (quota 2)",
        "governor powersave, turbo on, limits 800 to 3600 MHz",
        "container docker",
        "board, power mode: not a board",
        "gpu: no driver",
        "its spread over the 8 blocks: 60 s have room for 47 such restarts",
    ],
)
def test_everything_is_said(said):
    assert said in _flat(FOUND)


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.0, "quiet"), (0.01, "quiet"), (0.02, "fairly quiet"), (0.08, "noisy"), (3.0, "very noisy")],
)
def test_the_verdict_goes_by_the_smallest_difference(value, word):
    least = dataclasses.replace(FOUND.difference, value=value)
    text = _text(dataclasses.replace(FOUND, difference=least))
    assert text.startswith(f"This machine is {word}: ")


@pytest.mark.parametrize("width", [20, 72, 80, 100, 300])
def test_no_line_is_wider_than_the_terminal_but_commands(width):
    for line in shown.lines(FOUND, width):
        if not any(style == "cyan" for _, style in line):
            assert sum(len(piece) for piece, _ in line) <= max(72, min(100, width))


def test_what_is_missing_has_its_reason():
    bare = dataclasses.replace(
        FOUND, interrupted=True, runs=0, piece_ns=None, blocks_ns=(), log_ratios=(), slowdown=None,
        spread=None, difference=None, steal=None, other_cpu=None, frequency_mhz=None, processes=(),
        quota_stops=None, advice=(),
        nulls={
            "difference": "0 whole blocks; a spread needs at least 3",
            "piece_ns": "it ended before the first run", "slowdown": "it ended before the first run",
            "steal": "no CPU times in /proc/stat", "other_cpu": "no CPU times in /proc/stat",
            "throttled": "no throttle counter", "quota_stops": "no nr_throttled",
        },
    )  # fmt: skip
    text = _flat(bare)
    assert text.startswith("How quiet this machine is cannot be said: 0 whole blocks")
    assert "it ended before the first run" in text
    assert "no block was finished" in text
    assert text.count("not readable here: no CPU times in /proc/stat") == 2
    assert "not readable here: no look at it was finished" in text  # the clock
    assert "None" not in text


def test_a_virtual_machines_clock_is_not_trusted():
    record = dataclasses.replace(MACHINE, governor=None)
    text = _flat(dataclasses.replace(FOUND, machine=record, frequency_mhz=(2445.4, 2445.4)))
    assert "2445 MHz throughout, as the hypervisor tells it" in text
    metal = _flat(dataclasses.replace(FOUND, frequency_mhz=(2445.4, 2445.4)))
    assert "2445 MHz throughout timer" in metal.replace("throttled not readable here: no throttle "
                                                        "counter in /sys quota stopped 3 times ", "")  # fmt: skip


def test_nobody_else():
    text = _flat(dataclasses.replace(FOUND, other_cpu=0.0, processes=(), unseen_cpu=0.0))
    assert "nobody else used the 2 cores" in text


def test_even_blocks_look_even():
    text = _text(dataclasses.replace(FOUND, blocks_ns=(2.00e6, 2.01e6, 2.00e6)))
    assert "▁▁▁  medians" in text


def test_a_name_cannot_move_the_terminals_cursor():
    sly = Process(name="\x1b[2J\u202eevil", pids=(5,), cores=0.4)
    text = _text(dataclasses.replace(FOUND, processes=(sly,)))
    assert "\x1b" not in text
    assert "\u202e" not in text


_SHARE = st.none() | st.floats(0, 50)


@given(
    steal=_SHARE,
    other=_SHARE,
    unseen=_SHARE,
    throttled=st.none() | st.integers(0, 9),
    blocks=st.lists(st.floats(1, 1e12), max_size=60).map(tuple),
    clocks=st.none() | st.tuples(st.floats(1, 6000), st.floats(1, 6000)).map(sorted).map(tuple),
    least=st.none() | st.floats(0, 1e4),
    worst=st.floats(0, 1e5),
    names=st.lists(st.text("ab\x1b\u202e\n é", min_size=1, max_size=60), max_size=8),
    width=st.integers(10, 200),
)
def test_whatever_was_seen_is_lines_without_holes(
    steal, other, unseen, throttled, blocks, clocks, least, worst, names, width
):
    difference = least if least is None else dataclasses.replace(FOUND.difference, value=least)
    found = dataclasses.replace(
        FOUND, steal=steal, other_cpu=other, unseen_cpu=unseen, throttled=throttled,
        blocks_ns=blocks, frequency_mhz=clocks, difference=difference,
        slowdown=Slowdown(median=worst / 2, p95=worst, worst=worst),
        processes=tuple(Process(name=n, pids=(5,), cores=0.2) for n in names),
    )  # fmt: skip
    text = _text(found, width)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b", text)
    for line in shown.lines(found, width):
        if not any(style == "cyan" for _, style in line):
            assert sum(len(piece) for piece, _ in line) <= max(72, min(100, width))


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mint-deploy", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def asked(monkeypatch):
    """Observe nothing; what was asked for, and FOUND."""
    calls = []

    def observe(seconds, *, progress):
        calls.append(seconds)
        progress(seconds, seconds, "block 1 of 1")
        return FOUND

    monkeypatch.setattr(quiet, "observe", observe)
    return calls


def test_ten_seconds_unless_others_are_asked_for(command, asked):
    code, out, err = command("doctor", "--machine")
    assert code == 0
    assert out.startswith("This machine is quiet")
    assert "how quiet this machine is" in err
    assert command("doctor", "--machine", "--seconds", "3")[0] == 0
    assert asked == [10.0, 3.0]


def test_json_holds_the_whole(command, asked):
    code, out, _ = command("doctor", "--machine", "--json")
    body = json.loads(out)
    assert code == 0
    assert body["machine"]["cores"] == 2.0
    assert body["overhead_ns"] == 310.2
    assert body["difference"]["value"] == 0.0085
    assert body["log_ratios"] == list(FOUND.log_ratios)
    assert body["processes"][0]["pids"] == [0]
    assert body["advice"][0]["command"] == "kill -STOP 0 1 2"


def test_a_terminal_that_knows_ascii_alone(monkeypatch, asked):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    shown.machine(as_json=False, seconds=1.0)
    sys.stdout.flush()
    text = raw.getvalue().decode("ascii")
    assert "...#....  medians from" in text
    assert "?" not in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--machine", "--seconds", "0"), "--seconds is 0"),
        (("--machine", "--seconds", "nan"), "--seconds is nan"),
        (("--seconds", "5"), "together with --machine"),
        (
            ("net.py:make", "--machine"),
            "--machine looks at the machine alone, but MODEL is net.py:make",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(command, asked, args, words):
    code, out, err = command("doctor", *args)
    assert code == 2
    assert words in err
    assert not out
    assert not asked


def test_control_c_shows_what_was_seen_and_exits_130():
    process = subprocess.Popen(
        [sys.executable, "-m", "mint_deploy", "doctor", "--machine", "--seconds", "60", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
            if not os.path.exists(children):  # noqa: PTH110  as a user sees it
                time.sleep(10)
                break
            with open(children, encoding="ascii") as stream:  # noqa: PTH123  the same
                if stream.read().strip():
                    break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    body = json.loads(out)
    assert body["interrupted"] is True
    assert body["seconds"] < 60
    assert body["machine"]["cores"] > 0
    assert "interrupted after" in err
    assert "Traceback" not in err
