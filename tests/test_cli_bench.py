"""``mint-deploy bench`` on files: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pretended
import pytest
from onnx_models import save_conv
from strange_runtime import QUICK

from mint_deploy import _bench_base, _bench_files, bench, cli
from mint_deploy.measurement_file import read


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mint-deploy", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def pretence(monkeypatch, tmp_path):
    """Processes that take 0.1 s to start, 1 ms (model ``old``) and 0.5 ms (``new``) a call."""
    for name in ("old", "new", "b", "c"):
        (tmp_path / f"{name}.onnx").touch()
    found = pretended.install(monkeypatch)
    found.start_s = 0.1
    found.call_s.update(old=0.001, new=0.0005)
    monkeypatch.setattr(_bench_files, "Settings", lambda: QUICK)
    return found


TWO = ("bench", "new.onnx", "--against", "old.onnx", "--runtime", "null")
ONE = ("bench", "new.onnx", "--runtime", "null")


# ---------------------------------------------------------------- what it prints


def test_two_files_in_turns(command, pretence):
    pretence.spread.update(new=0.01, old=0.01)
    said = command(*TWO)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["batch", "a", "call", "p90", "p99", "samples/s", "memory"]
    assert re.match(r"  new +1 +\d+(\.\d+)? µs ± \d+(\.\d+)? ", lines[1]), lines[1]
    assert "old takes 2.0" in said.out
    assert re.search(
        r"old takes 2\.\d+ ± 0\.0\d+ of the time of new \(.* 95 % interval, ", said.out
    )
    # no more digits than the interval supports, anywhere
    assert not re.search(r"\d\.\d{5,}", said.out)
    assert "restart" in said.err or said.err  # progress is on stderr


def test_a_percentile_without_the_samples_for_it_is_a_dash_with_its_reason(command, pretence):
    said = command(*ONE)
    assert re.search(r"new, batch 1: \d+ samples; p99 needs 662 for 99 % confidence", said.out)
    row = next(line for line in said.out.splitlines() if line.startswith("  new "))
    assert row.count("–") == 1


def test_one_json_object_on_stdout(command, pretence):
    said = command(*TWO, "--json")
    body = json.loads(said.out)
    assert [m["task"]["label"] for m in body["measurements"]] == ["new", "old"]
    (c,) = body["comparisons"]
    assert c["ratio"] == pytest.approx(2)
    assert body["interrupted"] is None
    assert body["verdicts"] == []


def test_a_baseline_is_written_and_read(command, pretence, tmp_path):
    assert command(*TWO, "--save-baseline", "base.jsonl").code == 0
    found = read(tmp_path / "base.jsonl")
    assert [m.task.label for m in found] == ["new", "old"]
    assert all(m.sequential and m.blocks for m in found)


def test_fast_models_are_told_with_the_harnesss_own_share(command, pretence):
    assert "the harness itself" not in command(*ONE).out
    pretence.call_s["new"] = 0.00005
    said = command(*ONE)
    assert re.search(r"the harness itself takes \d+(\.\d+)? (ns|µs) of each call", said.out)
    body = json.loads(command(*ONE, "--json").out)
    assert 0 < body["overhead_ns"] < 100_000


def test_doubts_are_told_once(command, pretence):
    pretence.spread.update(new=0.3, old=0.3)
    said = command(*TWO, "--seconds", "5")
    told = [line for line in said.out.splitlines() if "doubt: not converged" in line]
    assert len(told) == 1
    assert "±1 % was wanted" in told[0]


# ---------------------------------------------------------------- scenarios


def test_bursts(command, pretence):
    said = command(*TWO, "--scenario", "multi_stream", "--streams", "3")
    assert said.code == 0, said.err
    assert "a burst" in said.out
    assert "1 x 3 streams" in said.out
    assert {d["streams"] for _, d in pretence.of("open")} == {3}
    pretence.asked.clear()
    command(*ONE, "--scenario", "multi_stream")
    assert {d["streams"] for _, d in pretence.of("open")} == {8}


def test_a_sweep_with_its_knee(command, pretence):
    said = command(*ONE, "--scenario", "offline", "--batch", "1,2,4", "--seconds", "10")
    assert said.code == 0, said.err
    # every call takes the same here: the largest batch is the best
    assert "new: the knee is at batch 4, and no other at 95 %" in said.out
    assert [row.split()[1] for row in said.out.splitlines()[1:4]] == ["1", "2", "4"]
    body = json.loads(command(*ONE, "--scenario", "offline", "--json").out)
    assert [m["task"]["batch"] for m in body["measurements"]] == [1, 2, 4, 8, 16, 32]
    assert body["knees"]["new"]["knee"] == 32


def test_a_sweep_of_two_files_is_in_turns(command, pretence):
    said = command(*TWO, "--scenario", "offline", "--batch", "1,8")
    assert said.out.count("of the time of new") == 2
    assert {(label, d["batch"]) for label, d in pretence.of("feed")} == {
        ("new", 1), ("old", 1), ("new", 8), ("old", 8),
    }  # fmt: skip
    assert "old: the knee is at batch 8" in said.out


def test_threads_and_batches_reach_the_processes(command, pretence):
    command(*ONE, "--threads", "2", "--batch", "1,4,4")
    assert {d["threads"] for _, d in pretence.of("open")} == {2}
    assert sorted({d["batch"] for _, d in pretence.of("feed")}) == [1, 4]


# ---------------------------------------------------------------- how many restarts


def _restarts(pretence):
    return len(pretence.of("start")) // 2


def test_the_width_that_is_wanted_ends_the_restarts(command, pretence):
    pretence.spread.update(new=0.01, old=0.01)
    counts = {}
    for width in ("1%", "5%", "0"):
        pretence.asked.clear()
        assert command(*TWO, "--half-width", width).code == 0
        counts[width] = _restarts(pretence)
    assert counts["0"] == 5
    assert counts["0"] <= counts["5%"] < counts["1%"]
    pretence.asked.clear()
    command(*TWO, "--half-width", "0", "--restarts", "3")
    assert _restarts(pretence) == 3


# ---------------------------------------------------------------- a limit


def test_with_against_the_first_file_is_judged(command, pretence):
    said = command(*TWO, "--max-latency", "+3%")
    assert said.code == 0, said.err
    assert "pass: new takes 0.500 to 0.500 of the time of old, at most 1.03 was allowed" in said.out
    pretence.call_s.update(new=0.0011)
    said = command(*TWO, "--max-latency", "3%")
    assert said.code == 1
    assert "fail: new takes 1.100" in said.out
    assert said.err.splitlines()[-1].startswith("error: new takes 1.100")
    assert "Traceback" not in said.err


def test_several_files_are_judged_against_the_first(command, pretence):
    files = ("bench", "old.onnx", "new.onnx", "--runtime", "null", "--max-latency", "-30%")
    said = command(*files)
    assert said.code == 0, said.err
    assert "pass: new takes 0.500 to 0.500 of the time of old, at most 0.7 was allowed" in said.out
    pretence.call_s.update(new=0.0008)
    assert command(*files).code == 1


def test_undecided_is_a_warning(command, pretence):
    pretence.spread.update(new=0.2, old=0.2)
    pretence.call_s.update(new=0.001)
    said = command(*TWO, "--max-latency", "+1%", "--seconds", "3")
    assert said.code == 0
    assert "inconclusive: new takes" in said.out
    assert "warning: inconclusive" in said.err
    assert "doubt: not decided" in said.out


def test_the_limit_ends_the_restarts_on_either_side_of_a_turned_ratio(command, pretence):
    """1.05 against +5 %: on the edge, whichever file is named first; 1.2 is decided at once."""
    pretence.spread.update(new=0.003, old=0.003)
    pretence.call_s.update(new=0.0012)
    command(*TWO, "--max-latency", "+5%")
    assert _restarts(pretence) == 5
    pretence.asked.clear()
    pretence.call_s.update(new=0.00105)
    said = command(*TWO, "--max-latency", "+5%", "--seconds", "20")
    assert _restarts(pretence) > 14
    assert "inconclusive" in said.out


# ---------------------------------------------------------------- Ctrl-C


def test_an_interrupt_prints_and_writes_what_there_is_and_is_130(command, pretence, tmp_path):
    def interrupt(label, what):
        if what == "block" and len(pretence.of("start")) == 8:
            raise KeyboardInterrupt

    pretence.before = interrupt
    said = command(*TWO, "--save-baseline", "base.jsonl")
    assert said.code == 130
    assert "of the time of new" in said.out
    assert "doubt: interrupted after 3 restarts" in said.out
    assert said.err.splitlines()[-1].startswith("interrupted after 3 restarts")
    assert [len(m.restarts_ns) for m in read(tmp_path / "base.jsonl")] == [3, 3]


def test_an_interrupt_keeps_the_batches_before(command, pretence):
    def interrupt(label, what):
        if what == "block" and pretence.of("feed")[-1][1]["batch"] == 4:
            raise KeyboardInterrupt

    pretence.before = interrupt
    said = command(*ONE, "--batch", "1,4", "--json")
    assert said.code == 130
    body = json.loads(said.out)
    assert [m["task"]["batch"] for m in body["measurements"]] == [1]
    assert body["interrupted"]


def test_an_interrupt_of_a_sweep(command, pretence):
    def interrupt(label, what):
        if what == "block" and pretence.of("feed")[-1][1]["batch"] == 4:
            raise KeyboardInterrupt

    pretence.before = interrupt
    said = command(*ONE, "--scenario", "offline", "--batch", "1,2,4")
    assert said.code == 130
    assert "new: the knee is at batch 2; measured once" in said.out


def test_an_interrupt_before_anything_is_130_and_prints_nothing(command, pretence, tmp_path):
    def interrupt(label, what):
        raise KeyboardInterrupt

    pretence.before = interrupt
    said = command(*TWO, "--save-baseline", "base.jsonl")
    assert (said.code, said.out) == (130, "")
    assert not (tmp_path / "base.jsonl").exists()


def test_ctrl_c_of_a_real_command_leaves_no_process_and_keeps_the_measurements(tmp_path):
    save_conv(tmp_path / "new.onnx")
    save_conv(tmp_path / "old.onnx", channels=12)
    code = "from mint_deploy.cli import main; main()"
    words = ["bench", "new.onnx", "--against", "old.onnx", "--half-width", "0.001%", "--seconds",
             "400", "--save-baseline", "base.jsonl"]  # fmt: skip
    root = str(Path(bench.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        seen, deadline = set(), time.monotonic() + 120
        # two processes a restart: when a fifth is seen, two restarts are whole
        while len(seen) < 5 and time.monotonic() < deadline and running.poll() is None:
            seen |= set(_measuring(running.pid))
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert len(seen) >= 5
    assert "interrupted after" in out
    assert "of the time of new" in out
    assert "Traceback" not in err
    assert len(read(tmp_path / "base.jsonl")) == 2
    assert not [pid for pid in seen if _measures(pid)]


def _measures(pid):
    try:
        return "_bench_worker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def _measuring(parent):
    try:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return []
    return [int(pid) for pid in found if _measures(pid)]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--scenario", "multistream"), "did you mean 'multi_stream'"),
        (("--streams", "4"), "streams is 4 under single_stream"),
        (("--scenario", "offline", "--streams", "4"), "streams is 4 under offline"),
        (("--scenario", "multi_stream", "--streams", "0"), "streams is 0"),
        (("--batch", "x"), "--batch is 'x'"),
        (("--batch", "0"), "batch is 0"),
        (("--batch", ""), None),
        (("--threads", "0"), "threads is 0"),
        (("--restarts", "0"), "restarts is 0"),
        (("--seconds", "0"), "budget_s is 0"),
        (("--seconds", "nan"), "budget_s is nan"),
        (("--half-width", "1"), "--half-width is '1', expected a percentage such as 1%"),
        (("--half-width", "wide"), "--half-width is 'wide'"),
        (("--half-width", "-1%"), "--half-width is -1%"),
        (("--max-latency", "+3%"), "give --against FILE"),
        (("--max-latency", "3", "--against", "b.onnx"), "--max-latency is '3'"),
        (
            ("b.onnx", "--max-latency", "3%", "--against", "c.onnx"),
            "judges one file; it was given 2",
        ),
        (("--against", "new.onnx"), "named twice"),
        (("--runtime", "nul"), "did you mean 'null'"),
    ],
)
def test_bad_input_is_named(command, pretence, flags, words):
    given = ONE if "--runtime" not in flags else ONE[:2]
    said = command(*given, *flags)
    if words is None:  # an empty --batch is the default
        assert said.code == 0
        return
    assert said.code == 2, said
    assert words in said.err
    assert "Traceback" not in said.err
    assert not pretence.of("start")


def test_a_run_folder_has_its_own_settings(command, tmp_path):
    (tmp_path / "run").mkdir()
    for flags in (("--threads", "2"), ("--half-width", "2%"), ("--scenario", "offline")):
        said = command("bench", "run", *flags)
        assert said.code == 2
        assert f"{flags[0]} is for files" in said.err
    said = command("bench", "run", "--against", "b.onnx")
    assert "not a folder with others" in said.err
    assert "not a run folder" in command("bench", "run").err


def test_the_streams_of_help_are_those_of_the_harness(command):
    said = command("bench", "--help")
    assert f"(multi_stream): {_bench_base.STREAMS}" in " ".join(said.out.split())
