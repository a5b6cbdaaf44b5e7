"""The multi_stream scenario: a burst of queries at once, over when the last of them is done.

Each query has a thread of its own and a runner of its own (its session, its memory); the threads
wait between two bursts. What starting and gathering them takes is part of a burst, as it is in a
server: :func:`mint_deploy.bench.overhead_ns` measures it. LoadGen's words, and its eight queries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from mint_deploy.runtimes import Arrays

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["Burst"]

Infer = Callable[[Arrays], object]


class Burst:
    """Threads that each answer one query of a burst; call it for a burst, leave it to end them.

    Raises:
        BaseException: calling it raises what the first query that failed has raised.
    """

    def __init__(self, infers: Sequence[Infer]) -> None:
        self._go: list[SimpleQueue[Arrays | None]] = [SimpleQueue() for _ in infers]
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(infer, go), daemon=True)
            for infer, go in zip(infers, self._go, strict=True)
        ]

    def _serve(self, infer: Infer, go: SimpleQueue[Arrays | None]) -> None:
        while (inputs := go.get()) is not None:
            self._done.put(_failure(infer, inputs))

    def __call__(self, inputs: Arrays) -> None:
        """Start all queries, and wait for the last."""
        for go in self._go:
            go.put(inputs)
        failed = [error for error in [self._done.get() for _ in self._go] if error is not None]
        if failed:
            raise failed[0]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for go in self._go:
            go.put(None)
        if kind is None:
            for thread in self._threads:
                thread.join()


def _failure(infer: Infer, inputs: Arrays) -> BaseException | None:
    """What a query raised, so that whoever waits can raise it."""
    try:
        infer(inputs)
    except BaseException as error:  # noqa: BLE001  raised again by whoever waits
        return error
    return None
