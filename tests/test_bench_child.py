"""Processes that end badly: they are told with their last words, and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from strange_runtime import QUICK, RUNTIME, install

from mint_deploy import bench, files
from mint_deploy._bench_child import Child
from mint_deploy.artifacts import Engine
from mint_deploy.bench import interleave
from mint_deploy.errors import InternalError, MintDeployError, ModelError


@pytest.fixture
def strange(tmp_path, monkeypatch):
    return install(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("kill 3", "'b' was ended by SIGKILL during '.*'; the system may have run out of memory"),
        ("exit 3", "'b' ended with exit code 3 during '.*'; its last words: about to leave"),
        ("raise 3", "exit code 1 .* RuntimeError: a bug in the runtime"),
        ("mend 3", "'b': the user can mend this"),
        ("kill 0", "'b' was ended by SIGKILL during 'warm'"),
    ],
)
def test_a_child_that_dies_is_told_with_its_last_words(strange, does, words):
    paths = {"a": strange("sleep 0.001", "a"), "b": strange(does, "b")}
    with pytest.raises(MintDeployError, match=words):
        interleave(paths, runtime=RUNTIME, restarts=2, settings=QUICK)
    assert not _children(os.getpid())


def test_the_class_of_a_childs_error_survives(strange):
    with pytest.raises(ModelError):
        interleave({"b": strange("mend 0")}, runtime=RUNTIME, restarts=1, settings=QUICK)


def test_a_child_that_hangs_is_given_up(strange):
    begin = time.monotonic()
    with pytest.raises(MintDeployError, match=r"did not answer '\w+' within .* was stopped"):
        interleave(
            {"a": strange("hang 5")},
            runtime=RUNTIME, restarts=1, settings=QUICK, budget_s=1, patience_s=1.0,
        )  # fmt: skip
    assert time.monotonic() - begin < 15
    assert not _children(os.getpid())


def _children(pid):
    """Process ids of living children that measure."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if (
            "_bench_worker" in command
            and fields[0] != "Z"
            and (pid is None or int(fields[1]) == pid)
        ):
            out.append(int(stat.parent.name))
    return out


def _alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_from_outside_leaves_no_orphans(strange, tmp_path, how):
    for name in ("a", "b"):
        strange("sleep 0.005", name)
    script = tmp_path / "run.py"
    script.write_text(
        "from mint_deploy.bench import Settings, interleave\n"
        f"paths = {{n: r'{tmp_path}/' + n for n in 'ab'}}\n"
        f"interleave(paths, runtime='{RUNTIME}', settings=Settings(min_s=30))\n"
    )
    root = str(Path(bench.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True
    ) as parent:
        deadline = time.monotonic() + 30
        while len(pids := _children(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(pids) == 2
        time.sleep(0.3)
        parent.send_signal(how)
        _, words = parent.communicate(timeout=20)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in words
    deadline = time.monotonic() + 10
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_alive, pids))


def test_what_a_library_prints_does_not_disturb_the_answers(strange, tmp_path):
    source = tmp_path / "strange_pkg" / "strange.py"
    source.write_text(source.read_text().replace("self.calls += 1", "self.calls += 1; print('hi')"))
    (m,), _ = interleave(
        {"a": strange("sleep 0")}, runtime=RUNTIME, restarts=1, half_width=None, settings=QUICK
    )
    assert len(m.restarts_ns[0]) >= 10


def test_an_error_here_does_not_wait_for_a_child_that_computes(strange):
    engine = Engine(path=str(strange("hang 0")), runtime=RUNTIME, precision="fp32", sha256="")
    child = Child("x").__enter__()
    child.ask("open", runtime=RUNTIME, engine=files.encode(engine), threads=1)
    child.ask("feed", batch=1, seed=0, inputs=None)
    request = {"do": "block", "count": 1, "settle": 0, "limit_s": 1}
    child._live().stdin.write(json.dumps(request).encode() + b"\n")
    begin = time.monotonic()
    child.__exit__(KeyboardInterrupt, None, None)
    assert time.monotonic() - begin < 5
    assert not _alive(child.pid)


def test_a_child_outside_of_its_block_is_our_bug():
    with pytest.raises(InternalError, match="was not started"):
        Child("x").ask("peak")
