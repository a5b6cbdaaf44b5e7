"""How the work tells how far it is: on stderr, never on stdout.

``Progress`` says nothing and keeps the warnings (Python, ``--quiet``), ``Lines`` writes a line a
stage (CI, a file), ``Live`` moves a bar (a terminal, by rich).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Lines", "Live", "Progress", "for_terminal"]


class Progress:
    """The quiet one. The others override how a line, a stage and a step are shown."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Tell the user something worth a line."""
        self._line(text, warning=False)

    def warn(self, text: str) -> None:
        """Tell the user something that may spoil the result; kept, and told once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._line(f"warning: {text}", warning=True)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Surround the work of one stage; its line comes when it ends."""
        begun = time.monotonic()
        self._begin(name, title)
        ended = "stopped: "
        try:
            yield
            ended = ""
        finally:
            self._end()
            self.say(f"  {name:<8} {time.monotonic() - begun:6.1f} s  {ended}{title}")

    def step(self, done: float, total: float, note: str = "") -> None:
        """Tell how much of the present stage is done, in any unit; ``total`` 0: not known."""
        self._step(done, total, note)

    def _line(self, text: str, *, warning: bool) -> None:
        """Show a line."""

    def _begin(self, name: str, title: str) -> None:
        """Show that a stage begins."""

    def _step(self, done: float, total: float, note: str) -> None:
        """Show how far the stage is."""

    def _end(self) -> None:
        """Clear what was shown of the stage."""


class Lines(Progress):
    """One line when a stage ends, and one now and then while it runs."""

    #: seconds between two lines of the same stage
    EVERY = 10.0

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._stage, self._last = "", 0.0

    def _line(self, text: str, *, warning: bool) -> None:  # noqa: ARG002 - a warning says so itself
        print(text, file=self._stream, flush=True)

    def _begin(self, name: str, title: str) -> None:  # noqa: ARG002 - the title comes at the end
        self._stage, self._last = name, time.monotonic()

    def _step(self, done: float, total: float, note: str) -> None:
        if time.monotonic() - self._last >= self.EVERY:
            self._last = time.monotonic()
            share = f"{100 * done / total:3.0f} %" if total else ""
            self.say(f"  {self._stage:<8} {share:>8}  {note}".rstrip())


class Live(Progress):
    """A moving bar for the present stage, a line for every finished one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        super().__init__()
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None

    def _line(self, text: str, *, warning: bool) -> None:
        self._console.print(text, style="yellow" if warning else None, soft_wrap=True)

    def _begin(self, name: str, title: str) -> None:
        self._bars.start()
        self._task = self._bars.add_task(f"{name:<8} {title}", total=None, note="")

    def _step(self, done: float, total: float, note: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None, note=note)

    def _end(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self._bars.stop()


def for_terminal(*, quiet: bool = False) -> Progress:
    """Choose what suits stderr: a bar on a terminal, lines elsewhere, nothing when ``quiet``."""
    if quiet:
        return Progress()
    return Live() if sys.stderr.isatty() else Lines()
