"""Runtimes: one file each, and in each the same three functions.

    missing() -> str | None                       why it cannot be used here, or None
    build(model, target, out) -> Engine           validate or compile a model for this machine
    runner(engine, *, threads=1) -> Runner        a context manager with ``infer``

``onnxruntime`` runs an ONNX file, ``pytorch`` a torch module of this process, ``null`` nothing at
all (it measures the harness). Dropping a file in adds a runtime; ``tests/test_runtimes.py`` is the
conformance suite that every one of them must pass. Standard library and numpy only: what a runtime
needs is imported inside its functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mint_deploy import files
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["DYNAMIC", "Arrays", "Runner", "closed", "option", "save_engine"]

#: a dimension that the model leaves open, in ``TensorSpec.shape``
DYNAMIC = -1

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Runner(Protocol):
    """A live engine: enter it, call ``infer`` as often as needed, leave it.

    ``engine`` says what runs and under which flags, ``threads`` how many compute threads it has,
    ``inputs`` and ``outputs`` what it takes and gives (an open dimension is ``DYNAMIC``).
    """

    @property
    def engine(self) -> Engine: ...  # noqa: D102  described above

    @property
    def threads(self) -> int: ...  # noqa: D102  described above

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102  described above

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102  described above

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run once: input name -> array, to output name -> array.

        Raises:
            DataError: an input that is missing, unknown or of the wrong shape or type.
            ConfigError: called outside of the ``with`` block.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def option(target: object, name: str, default: Any) -> Any:
    """Read a field of a target: a Target, its JSON object (as a bundle carries it), or None."""
    value = target.get(name) if isinstance(target, Mapping) else getattr(target, name, None)
    return default if value is None else value


def save_engine(engine: Engine, out: str | os.PathLike[str] | None) -> Engine:
    """Write ``engine.json`` into the folder ``out`` (none: not kept) and return the engine."""
    if out is not None:
        files.write_value(Path(out) / "engine.json", engine)
    return engine


def closed(runtime: str) -> ConfigError:
    """The error of a runner used outside of its ``with`` block."""
    return ConfigError(f"this {runtime} runner is not open; call infer inside 'with runner: ...'")
