"""Measuring processes that do not exist: they answer at once, on a clock of their own."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from mint_deploy import _bench_sweep, _bench_turns, files
from mint_deploy.artifacts import Engine, MachineState

__all__ = ["Pretence", "install"]


class Pretence:
    """What the processes are asked, and how long they say that a call takes.

    ``call_s``: label -> seconds a call; ``spread``: label -> standard deviation (of the logarithm)
    between its restarts; ``start_s``: what starting a process takes.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.call_s: dict[str, float] = {}
        self.spread: dict[str, float] = {}
        self.start_s = 0.0
        self.now_s = 1000.0
        self.started = 0
        self.living: set[object] = set()
        self.before: Callable[[str, str], None] = lambda label, what: None
        self.random = random.Random(0)

    def of(self, what: str) -> list[tuple[str, dict[str, Any]]]:
        """Who was asked for something, and with which details."""
        return [(label, details) for label, verb, details in self.asked if verb == what]


def install(monkeypatch: pytest.MonkeyPatch) -> Pretence:
    """Put them in the place of the real ones, and their clock in that of the machine."""
    pretence = Pretence()

    class Child:
        def __init__(self, label: str, *, patience_s: float = 0.0) -> None:
            self._label, self.pid = label, 1
            self._off = pretence.random.gauss(0.0, pretence.spread.get(label, 0.0))

        def __enter__(self):
            pretence.asked.append((self._label, "start", {}))
            pretence.living.add(self)
            pretence.now_s += pretence.start_s
            return self

        def __exit__(self, *_: object) -> None:
            pretence.asked.append((self._label, "stop", {}))
            pretence.living.discard(self)

        def ask(self, what: str, **details: Any) -> dict[str, Any]:
            pretence.before(self._label, what)
            pretence.asked.append((self._label, what, details))
            call_s = pretence.call_s.get(self._label, 0.001) * math.exp(self._off)
            ns = int(call_s * 1e9)
            calls = {"warm": 4, "block": details.get("count", 0) + details.get("settle", 0)}
            pretence.now_s += calls.get(what, 0) * call_s
            shape = [details.get("batch", 1), 1]
            engine = files.encode(Engine(path="", runtime="null", precision="none", sha256=""))
            return {
                "open": {"load_ns": 7, "import_rss_bytes": 30, "engine": engine, "inputs": []},
                "feed": {"inputs": [{"name": "input", "shape": shape, "dtype": "float32"}]},
                "warm": {"ns": [ns] * 4},
                "block": {
                    "ns": [ns] * details.get("count", 0),
                    "settle_ns": [ns] * details.get("settle", 0),
                },
                "peak": {"peak_rss_bytes": 50},
            }[what]

    class Watch:
        gaps: ClassVar = {"states.steal": "a pretended machine"}

        def look(self, own_pids: Any = ()) -> MachineState:
            assert set(own_pids) <= {1}
            assert pretence.living, "looked at when the processes are gone"
            return MachineState(load_average=0.5)

    monkeypatch.setattr(_bench_turns, "Child", Child)
    monkeypatch.setattr(_bench_sweep, "Child", Child)
    monkeypatch.setattr(_bench_turns, "Watch", Watch)
    monkeypatch.setattr(time, "monotonic", lambda: pretence.now_s)
    return pretence
