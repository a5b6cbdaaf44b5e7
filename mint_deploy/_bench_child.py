"""The parent's end of the pipe to a process that measures (:mod:`mint_deploy._bench_worker`)."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mint_deploy import errors
from mint_deploy.errors import InternalError, MintDeployError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["PATIENCE_S", "Child"]

#: seconds beyond its own limit after which a silent process is given up
PATIENCE_S = 300.0


class Child:
    """A fresh process that measures one model; it is gone when the ``with`` block is left.

    Raises:
        MintDeployError: it died, fell silent, or could not do what it was asked; the message
            carries its label, how it ended, and its last words.
    """

    def __init__(self, label: str, *, patience_s: float = PATIENCE_S) -> None:
        self._label, self._patience_s = label, patience_s
        self._unread = b""
        self._stack = ExitStack()
        self._words: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # the folder (or the zip) that this package was imported from
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in paths if p),
            # numpy's own thread pool has no part in what is measured
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with ExitStack() as stack:
            # what it says on stderr is shown only if it dies
            self._words = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mint_deploy._bench_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                env=environment,
                bufsize=0,
                start_new_session=True,
            )
            self._stack = stack.pop_all()
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        return self._live().pid

    def _live(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise InternalError(f"the measuring process of '{self._label}' was not started")
        return self._process

    def ask(self, what: str, *, limit_s: float = 0.0, **details: Any) -> dict[str, Any]:
        """Send one request and return the answer."""
        process = self._live()
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise InternalError("a measuring process without pipes")
        request = {"do": what, **details}
        if what in ("warm", "block"):
            request["limit_s"] = limit_s
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._died(what) from error
        deadline = time.monotonic() + limit_s + self._patience_s
        while b"\n" not in self._unread:
            ready = select.select([stdout], [], [], max(deadline - time.monotonic(), 0.0))[0]
            if not ready:
                process.kill()
                raise MintDeployError(
                    f"the process that measures '{self._label}' did not answer '{what}' within "
                    f"{limit_s + self._patience_s:.0f} s and was stopped; measure a smaller batch"
                )
            received = os.read(stdout.fileno(), 1 << 20)
            if not received:
                raise self._died(what)
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise _rebuilt(reply["error"], self._label)
        answer: dict[str, Any] = reply["ok"]
        return answer

    def _died(self, what: str) -> MintDeployError:
        """Describe the end of the process."""
        try:
            code = self._live().wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._live().kill()
            code = self._live().wait()
        if code < 0:
            names = {int(s): s.name for s in signal.Signals}
            how = f"was ended by {names.get(-code, f'signal {-code}')}"
            hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        else:
            how, hint = f"ended with exit code {code}", ""
        said = b""
        if self._words is not None:
            self._words.seek(0)
            said = self._words.read()
        lines = [s for s in said.decode(errors="replace").splitlines() if s.strip()]
        tail = f"; its last words: {' | '.join(lines[-3:])}" if lines else ""
        return MintDeployError(
            f"the process that measures '{self._label}' {how} during '{what}'{hint}{tail}"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._live()
        try:
            if process.stdin is not None:
                process.stdin.close()
            if kind is not None:
                process.kill()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        except BaseException:
            # a second Ctrl-C while it is closing: still no orphan
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
            self._stack.close()


def _rebuilt(found: dict[str, str], label: str) -> MintDeployError:
    """The child's error again, of the same class where that takes a message alone."""
    kind = getattr(errors, found["type"], MintDeployError)
    plain = (
        isinstance(kind, type)
        and issubclass(kind, MintDeployError)
        and (kind.__init__ is MintDeployError.__init__)
    )
    message = found["message"] or found["type"]
    return (kind if plain else MintDeployError)(f"'{label}': {message}")
