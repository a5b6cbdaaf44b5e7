"""CPU times of named processes, on recorded trees and on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import trees

from mint_deploy import _processes
from mint_deploy._processes import Census, Process

HZ = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def second(monkeypatch):
    """Between the first count and the next lies one second."""
    ticks = iter(range(1000))
    monkeypatch.setattr(_processes.time, "perf_counter", lambda: float(next(ticks)))


def _cmdline(root, pid, *words):
    trees.write(root, f"proc/{pid}/cmdline", "\0".join(words) + "\0")


def test_the_line_of_a_process():
    line = "31 (a) b (c) S 7 1 1 0 -1 4194304 9 9 9 9 11 22 33 44 20 0 1 0 5678 0"
    assert _processes.parse_process(line) == ("a) b (c", 7, 5678, 33)
    assert _processes.parse_process("31 (a) S 7") is None
    assert _processes.parse_process("") is None
    assert _processes.parse_process(line.replace("5678", "-1")) is None


def test_programs_by_what_they_used(tmp_path, second):
    trees.process(tmp_path, 50, 1000, name="cc1")
    trees.process(tmp_path, 51, 1000, name="cc1")
    trees.process(tmp_path, 52, 5, name="idler")
    census = Census(tmp_path)
    trees.process(tmp_path, 50, 1000 + HZ // 2, name="cc1")
    trees.process(tmp_path, 51, 1000 + HZ // 4, name="cc1")
    trees.process(tmp_path, 53, HZ // 10, name="newcomer", start=9)
    census.count()
    assert census.found() == (
        Process(name="cc1", pids=(50, 51), cores=0.75),
        Process(name="newcomer", pids=(53,), cores=0.1),
    )
    assert census.found(at_least=0.5) == census.found()[:1]


def test_an_id_that_is_used_again_is_another_process(tmp_path, second):
    trees.process(tmp_path, 50, 1000, name="old", start=5)
    census = Census(tmp_path)
    trees.process(tmp_path, 50, HZ // 2, name="new", start=6)
    census.count()
    assert census.found() == (Process(name="new", pids=(50,), cores=0.5),)


def test_one_that_has_ended_keeps_its_share_but_cannot_be_paused(tmp_path, second):
    trees.process(tmp_path, 50, 0, name="short")
    census = Census(tmp_path)
    trees.process(tmp_path, 50, HZ, name="short")
    census.count()
    (tmp_path / "proc/50/stat").unlink()
    census.count()
    (found,) = census.found()
    assert found.pids == ()
    assert found.cores == pytest.approx(0.5)  # over two seconds now


@pytest.mark.parametrize(
    ("short", "words", "name"),
    [
        (
            "python3.11",
            ("/usr/bin/python3", "/srv/train.py", "--epochs", "3"),
            "python3.11 train.py",
        ),
        ("python", ("python", "-m", "http.server"), "python -m http.server"),
        ("python", ("python", "-u", "x.py"), "python x.py"),
        ("python", ("python",), "python"),
        ("bash", ("bash", "/opt/run.sh"), "bash run.sh"),
        ("sshd", ("sshd: user",), "sshd"),
        ("node", ("node", "-e"), "node"),
        ("node", ("node", "a" * 200), "node " + "a" * 43),
    ],
)
def test_an_interpreter_is_named_by_what_it_runs(tmp_path, second, short, words, name):
    census = Census(tmp_path)
    trees.process(tmp_path, 50, HZ, name=short)
    _cmdline(tmp_path, 50, *words)
    census.count()
    assert [p.name for p in census.found()] == [name]


def test_this_process_and_its_children_are_not_others(tmp_path, second):
    census = Census(tmp_path)
    trees.process(tmp_path, os.getpid(), HZ, name="me")
    trees.process(tmp_path, 60, HZ, name="child", parent=os.getpid())
    trees.process(tmp_path, 61, HZ, name="grandchild", parent=60)
    trees.process(tmp_path, 62, HZ, name="stranger", parent=63)
    trees.process(tmp_path, 63, 0, name="loop", parent=62)
    census.count()
    assert [p.name for p in census.found()] == ["stranger"]


def test_threads_of_the_kernel_and_those_above_us_cannot_be_paused(tmp_path, second):
    trees.process(tmp_path, 2, 0, name="kthreadd", parent=0)
    census = Census(tmp_path)
    above = os.getppid()
    trees.process(tmp_path, 70, HZ, name="kswapd0", parent=2)
    trees.process(tmp_path, above, HZ, name="shell", parent=71)
    trees.process(tmp_path, 71, HZ, name="runner", parent=1)
    census.count()
    found = {p.name: (p.pids, p.kernel) for p in census.found()}
    assert found == {"[kswapd0]": ((70,), True), "shell": ((), False), "runner": ((), False)}


def test_in_a_container_number_two_is_a_program_like_others(tmp_path, second):
    trees.process(tmp_path, 2, 0, name="server", parent=1)
    census = Census(tmp_path)
    trees.process(tmp_path, 80, HZ, name="worker", parent=2)
    census.count()
    assert census.found() == (Process(name="worker", pids=(80,), cores=1.0),)


def test_without_proc_there_is_nobody(tmp_path):
    census = Census(tmp_path / "absent")
    census.count()
    assert census.found() == ()


def test_a_real_neighbour_is_found(tmp_path):
    """A process that is not our child: its parent has ended, as that of a daemon has."""
    if not os.path.exists("/proc/self/stat"):  # noqa: PTH110  as a user sees it
        pytest.skip("this system has no /proc")
    script = tmp_path / "neighbour.py"
    script.write_text(
        "import time\nend = time.time() + 60\nwhile time.time() < end:\n    pass\n",
        encoding="utf-8",
    )
    census = Census()
    # the first child starts the neighbour, says its id and ends
    code = (
        "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL, start_new_session=True); print(p.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, str(script)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    pid = int(done.stdout)
    try:
        found = None
        deadline = time.monotonic() + 15
        while found is None and time.monotonic() < deadline:
            time.sleep(0.2)
            census.count()
            found = next((p for p in census.found() if pid in p.pids), None)
        assert found is not None
        assert found.name.endswith("neighbour.py")
        assert found.cores > 0
    finally:
        os.kill(pid, 9)
