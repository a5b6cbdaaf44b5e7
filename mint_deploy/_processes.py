"""Which processes used the CPU: times of /proc/PID/stat from one count to the next.

A process is known by its id and its start, so that an id that is used again is another process. One
that lives between two counts is not seen; nor is one of another container. Standard library only.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from mint_deploy import _sysfs

__all__ = ["Census", "Process", "parse_process"]

#: programs that run somebody else's: the script is the better name
_INTERPRETERS = re.compile(r"(python|node|java|ruby|perl|bash|sh|Rscript|julia)[\d.]*$")
_NAME = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one program used, in cores on average.

    ``pids`` are those that still run and may be paused: a thread of the ``kernel`` may not, nor
    may what this process was started by.
    """

    name: str
    pids: tuple[int, ...]
    cores: float
    kernel: bool = False


@dataclass(frozen=True, slots=True)
class _Times:
    name: str
    parent: int
    start: int
    ticks: int


def parse_process(text: str) -> tuple[str, int, int, int] | None:
    """Read /proc/PID/stat: name, parent's id, start, and clock ticks of the process itself."""
    before, bracket, after = text.rpartition(")")
    fields = after.split()
    if not bracket or len(fields) < 20 or not all(fields[n].isdecimal() for n in (1, 11, 12, 19)):
        return None
    return before.partition("(")[2], int(fields[1]), int(fields[19]), sum(map(int, fields[11:13]))


class Census:
    """Counts the CPU time of all processes but this one and its children."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._proc = Path(root) / "proc"
        self._before, self._begin = self._scan(), time.perf_counter()
        second = next((t.name for key, t in self._before.items() if key[0] == 2), "")
        # in a container number 2 may be anything
        self._kernel = 2 if second == "kthreadd" else -1
        self._passed = 0.0
        self._used: dict[tuple[int, int], int] = {}
        self._names: dict[tuple[int, int], str] = {}

    def count(self) -> None:
        """Add what was used since the last count."""
        before, now = self._before, self._scan()
        self._before = now
        parents = self._parents()
        self._passed = time.perf_counter() - self._begin
        for key, times in now.items():
            early = before.get(key)
            # one that was not there before has spent all its time since
            used = times.ticks - (early.ticks if early else 0)
            if used > 0 and os.getpid() not in _line(key[0], parents):
                self._used[key] = self._used.get(key, 0) + used
                self._names.setdefault(key, self._name(key[0], times))

    def found(self, at_least: float = 0.005) -> tuple[Process, ...]:
        """Return the programs that used ``at_least`` so many cores, the busiest first."""
        hz = os.sysconf("SC_CLK_TCK")
        by_name: dict[str, list[tuple[int, int]]] = {}
        for key, name in self._names.items():
            by_name.setdefault(name, []).append(key)
        above = {1, *_line(os.getppid(), self._parents())}
        rows = [
            Process(
                name=name,
                pids=tuple(
                    sorted(key[0] for key in keys if key in self._before and key[0] not in above)
                ),
                cores=sum(self._used[key] for key in keys) / hz / max(self._passed, 1e-9),
                kernel=name.startswith("["),
            )
            for name, keys in by_name.items()
        ]
        return tuple(sorted((r for r in rows if r.cores >= at_least), key=lambda r: -r.cores))

    def _scan(self) -> dict[tuple[int, int], _Times]:
        try:
            names = os.listdir(self._proc)  # noqa: PTH208  names alone, and a tenth of the time
        except OSError:
            return {}
        out = {}
        for name in names:
            read = _sysfs.head(self._proc / name / "stat") if name.isdigit() else None
            found = parse_process(read) if read else None
            if found is not None:
                out[int(name), found[2]] = _Times(*found)
        return out

    def _parents(self) -> dict[int, int]:
        return {key[0]: times.parent for key, times in self._before.items()}

    def _name(self, pid: int, times: _Times) -> str:
        """The program's name; of an interpreter also what it runs; ``[name]`` of a kernel thread."""
        short = times.name
        if self._kernel in (times.parent, pid):
            return f"[{short}]"
        read = (_sysfs.head(self._proc / str(pid) / "cmdline") or "").split("\0")
        words = [w for w in read[1:] if w]
        if not _INTERPRETERS.fullmatch(short) or not words:
            return short
        if words[0] == "-m" and len(words) > 1:
            return f"{short} -m {words[1]}"[:_NAME]
        script = next((w for w in words if not w.startswith("-")), "")
        return f"{short} {Path(script).name}".strip()[:_NAME]


def _line(pid: int, parents: dict[int, int]) -> list[int]:
    """A process, its parent, that one's parent ..."""
    out: list[int] = []
    while pid and pid not in out:
        out.append(pid)
        pid = parents.get(pid, 0)
    return out
