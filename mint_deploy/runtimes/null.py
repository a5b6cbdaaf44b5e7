"""The runtime that computes nothing: what it takes is what the harness itself takes."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy import files
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.runtimes import DYNAMIC, Arrays, closed, save_engine

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["NullRunner", "build", "missing", "runner"]


def missing() -> str | None:
    """Nothing is needed, so nothing is missing."""
    return None


def build(
    model: str | os.PathLike[str] = "",
    target: object = None,  # noqa: ARG001  the signature that every runtime shares
    out: str | os.PathLike[str] | None = None,
) -> Engine:
    """Return an engine that stands for ``model``; the file is hashed where there is one."""
    path = os.fspath(model)
    digest = files.sha256(path) if path and Path(path).is_file() else ""
    return save_engine(Engine(path=path, runtime="null", precision="none", sha256=digest), out)


def runner(engine: Engine | None = None, *, threads: int = 1) -> NullRunner:
    """Return a runner whose ``infer`` hands back the same zeros at once."""
    return NullRunner(engine or build(), threads)


class NullRunner:
    """Takes anything, computes nothing, returns one zero."""

    inputs = (TensorSpec(name="input", shape=(DYNAMIC, 1)),)
    outputs = (TensorSpec(name="output", shape=(1, 1)),)

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine, self.threads = engine, threads
        self._result: dict[str, np.ndarray[Any, np.dtype[Any]]] | None = None

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:  # noqa: ARG002  computes nothing
        """Return the zeros."""
        if self._result is None:
            raise closed("null")
        return self._result

    def __enter__(self) -> Self:
        self._result = {"output": np.zeros((1, 1), dtype=np.float32)}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._result = None
