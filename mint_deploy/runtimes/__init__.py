"""Runtimes: one file each, and in each the same three functions.

    missing() -> str | None                       why it cannot be used here, or None
    build(model, target, out) -> Engine           validate or compile a model for this machine
    runner(engine, *, threads=1) -> Runner        a context manager with ``infer``

``onnxruntime`` and ``openvino`` run an ONNX file, ``onnxruntime_cuda`` and ``onnxruntime_tensorrt``
the same on a GPU, ``pytorch`` a torch module of this process, ``null`` nothing at all (it measures
the harness). Dropping a file in adds a runtime; ``tests/test_runtimes.py`` is the conformance suite
that every one of them must pass. A runner may have ``profile(inputs, calls) -> [(node, operator,
ns)]``. Standard library and numpy only: what a runtime needs is imported inside its functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mint_deploy import files, onnx_wire
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError, DataError, EngineMismatch, ModelError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = [
    "DYNAMIC",
    "Arrays",
    "Runner",
    "check_inputs",
    "closed",
    "no_samples",
    "option",
    "same_file",
    "save_engine",
]

#: a dimension that the model leaves open, in ``TensorSpec.shape``
DYNAMIC = -1

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Runner(Protocol):
    """A live engine: enter it, call ``infer`` as often as needed, leave it.

    It may be entered again once it was left, several may be open at once, and ``infer`` may be
    called from several threads. The arrays that ``infer`` returns are the caller's to keep.

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
            DataError: an input that is missing, unknown, empty or of the wrong shape or type.
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


def same_file(engine: Engine) -> str:
    """Return the hash of an engine's ONNX file, once it is known to be the one that was built.

    Raises:
        ModelError: no such file, or one that wants to read outside of its folder.
        EngineMismatch: another file; external data counts as part of it.
    """
    if not Path(engine.path).is_file():
        raise ModelError(f"no such file: {engine.path}; expected an ONNX model")
    found = onnx_wire.digest(engine.path)
    if engine.sha256 and found != engine.sha256:
        raise EngineMismatch(
            "the file with SHA-256", engine.sha256[:12], found[:12], advice="build it anew"
        )
    return found


def closed(runtime: str) -> ConfigError:
    """The error of a runner used outside of its ``with`` block."""
    return ConfigError(f"this {runtime} runner is not open; call infer inside 'with runner: ...'")


def no_samples(inputs: Arrays) -> DataError:
    """Return the error of a batch without a sample, which the libraries answer in ways of their own."""
    name = next(name for name, array in inputs.items() if not array.size)
    return DataError(
        f"input '{name}' {list(inputs[name].shape)} holds no sample; give a batch of 1 or more"
    )


def check_inputs(specs: Sequence[TensorSpec], inputs: Arrays, name: str) -> None:
    """Check what a library would not: it converts types, and takes a missing input from the call before.

    Raises:
        DataError: an input that is missing, unknown, empty or of the wrong shape or type.
    """
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None or array.dtype != spec.dtype or not _fits(array.shape, spec.shape):
            break
        if not array.size:
            raise no_samples(inputs)
    else:
        if len(inputs) == len(specs):
            return
    expected = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in specs)
    given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items())
    raise DataError(f"{name} takes {expected}; was given {given or 'nothing'}")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (size, DYNAMIC) for size, w in zip(shape, wanted, strict=True)
    )
