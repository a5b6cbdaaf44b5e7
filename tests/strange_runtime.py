"""A runtime of somebody else's for the tests of the bench: it sleeps, dies or hangs as told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mint_deploy.bench import Settings

#: its dotted name, once its folder is on the path
RUNTIME = "strange_pkg.strange"

#: enough for a test: ten calls, however far they spread
QUICK = Settings(warmup_s=0.0, warmup_count=2, min_s=0.0, min_count=10, precision=1e9)

#: the module itself; what a file of its says (``sleep 0.01``, ``kill 3``) is what it does
STRANGE = """
import os, signal, time
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ModelError

def missing():
    return None

def build(model, target=None, out=None):
    return Engine(path=str(model), runtime="strange", precision="fp32", sha256="")

def runner(engine, *, threads=1):
    return Runner(engine, threads)

class Runner:
    inputs = (TensorSpec(name="input", shape=(-1, 2)),)
    outputs = ()

    def __init__(self, engine, threads):
        self.engine, self.threads, self.calls = engine, threads, 0
        self.does = open(engine.path).read().split()

    def infer(self, inputs):
        self.calls += 1
        verb, value = self.does[0], float(self.does[1])
        if verb == "sleep":
            time.sleep(value)
        elif verb == "log":
            with open(self.does[2], "a") as out:
                begin = time.monotonic_ns()
                while time.monotonic_ns() < begin + value * 1e9:
                    pass
                out.write(f"{os.path.basename(engine_name(self))} {begin} {time.monotonic_ns()}\\n")
        elif self.calls > value:
            if verb == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif verb == "exit":
                print("about to leave")
                os._exit(3)
            elif verb == "raise":
                raise RuntimeError("a bug in the runtime")
            elif verb == "hang":
                time.sleep(60)
            elif verb == "mend":
                raise ModelError("the user can mend this")
        return {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        pass

def engine_name(runner):
    return runner.engine.path
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put the runtime on the path; return a function: what it is to do -> a file for it."""
    (folder / "strange_pkg").mkdir()
    (folder / "strange_pkg" / "__init__.py").write_text("")
    (folder / "strange_pkg" / "strange.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def make(does: str, name: str = "m") -> Path:
        path = folder / name
        path.write_text(does)
        return path

    return make
