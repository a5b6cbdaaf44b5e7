"""An ONNX model that answers any number of samples, whatever batch it takes.

Quantised models are computed as they are written: Q/DQ nodes round, everything between is float32. So a figure
does not depend on which 8-bit instructions this machine has; ``as_runtime=True`` lets ONNX Runtime use its integer
kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ModelError
from mint_deploy.onnx_wire import data_files
from mint_deploy.runtimes import DYNAMIC

__all__ = ["OPEN_BATCH", "Arrays", "Network", "pieces"]

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

#: samples at a time where the model leaves the batch open
OPEN_BATCH = 16


class Network:
    """One session on the CPU.

    Args:
        model: a file, or the bytes of one.
        threads: compute threads; one by default, so that sums have the same last digits everywhere.
        as_runtime: compute quantised layers with ONNX Runtime's integer kernels.

    Raises:
        ModelError: ONNX Runtime refuses the model, or the file wants data from outside of its folder.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        threads: int = 1,
        as_runtime: bool = False,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not as_runtime:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        source = model if isinstance(model, bytes) else os.fspath(model)
        if isinstance(source, str):
            data_files(source)  # refuses what lies outside of the file's folder
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            name = "the model" if isinstance(model, bytes) else Path(model).name
            raise ModelError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {_first_line(error)}"
            ) from error
        self.as_runtime = as_runtime
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        first = next((s.shape[0] for s in self.inputs if s.shape), DYNAMIC)
        self.batch = None if first == DYNAMIC else first

    def infer(
        self, inputs: Arrays, *, batch: int | None = None
    ) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run samples ``[N, ...]`` and return every output that has a row for each of them.

        Args:
            inputs: name -> ``[N, ...]``; float inputs are cast to what the model takes.
            batch: samples a call, where the model leaves that open.

        Raises:
            ModelError: the session fails, or no output has one row per sample.
        """
        names = [spec.name for spec in self.outputs]
        kinds = {s.name: s.dtype for s in self.inputs}
        found: dict[str, list[np.ndarray[Any, np.dtype[Any]]]] = {name: [] for name in names}
        for piece, real in pieces(inputs, self.batch or batch or OPEN_BATCH, self.batch is None):
            size = len(next(iter(piece.values())))
            fed = {name: value.astype(kinds[name], copy=False) for name, value in piece.items()}
            try:
                answers = self._session.run(names, fed)
            except Exception as error:
                raise ModelError(
                    f"ONNX Runtime fails on a batch of {size}: {_first_line(error)}"
                ) from error
            for name, value in zip(names, answers, strict=True):
                if np.ndim(value) and len(value) == size:
                    found[name].append(value[:real])
                else:
                    found.pop(name, None)
            names = [name for name in names if name in found]
            if not names:
                raise ModelError(
                    "no output of the model has one row per sample; nothing to compare by"
                )
        return {name: np.concatenate(values) for name, values in found.items()}


def pieces(
    inputs: Arrays, batch: int, may_be_smaller: bool
) -> Iterator[tuple[dict[str, np.ndarray[Any, np.dtype[Any]]], int]]:
    """Yield batches and how many rows of each are real; a fixed batch is filled up from the front."""
    count = min(len(value) for value in inputs.values())
    for start in range(0, count, batch):
        real = min(batch, count - start)
        rows = np.arange(start, start + (real if may_be_smaller else batch)) % count
        yield {name: value[rows] for name, value in inputs.items()}, real


def _spec(node: Any) -> TensorSpec:
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    shape = tuple(d if isinstance(d, int) and d >= 0 else DYNAMIC for d in node.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=names.get(kind, kind))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
