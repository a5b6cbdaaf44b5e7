"""A copy of an ONNX file whose batch is open, for sweeps over the batch; proven to compute the same.

A target pins the batch, because an engine is built for one. How throughput grows with it is asked of a copy: its
first dimension is open, and what the exporter wrote down of the old batch (the sizes that a Reshape or an Expand
leads to) follows it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from mint_deploy import files
from mint_deploy.bench import random_inputs
from mint_deploy.errors import ModelError
from mint_deploy.onnx_file import load_onnx, read_onnx
from mint_deploy.onnx_layers import OnnxGraph, read_graph
from mint_deploy.parity import compare_outputs

__all__ = ["open_batch"]

#: samples that the copy is tried on at once
TRIED = 3


def open_batch(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, tolerance: float = 1e-4
) -> Path:
    """Write ``path`` with an open batch to ``out``, and check it sample by sample against ``path``.

    A file whose batch is open already is copied as it is.

    Raises:
        ModelError: the network cannot be opened (it mixes its samples, or writes the batch down elsewhere).
    """
    graph = read_graph(path)
    model = load_onnx(path)
    if not graph.open_batch:
        _open_(model, graph)
    with files.atomic(out) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
        worst = 0.0 if graph.open_batch else _difference(Path(path), part, graph.batch)
        if not worst <= tolerance:
            raise ModelError(
                f"the batch of {path} cannot be opened: with {TRIED * graph.batch} samples the copy differs by "
                f"{worst:.1e}, at most {tolerance:.0e} is allowed; export it with an open batch"
            )
    return Path(out)


def _open_(model: Any, graph: OnnxGraph) -> None:
    """Let the first dimension follow the input, wherever the file says what it was."""
    inner = model.graph
    del inner.value_info[:]
    for value in (*inner.input, *inner.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in graph.weights and dims and dims[0].dim_value == graph.batch:
            dims[0].dim_param = "batch"
    fresh = []
    for i, node in enumerate(inner.node):
        if node.op_type not in ("Reshape", "Expand") or len(node.input) < 2:
            continue
        read, tensor = graph.shapes.get(node.input[0]), graph.weights.get(node.input[1])
        if tensor is None or not read or read[0] != graph.batch:
            continue
        sizes = numpy_helper.to_array(tensor).copy()
        if sizes.size and sizes[0] == graph.batch and 0 not in sizes:
            # 0: as it comes in; 1: an Expand keeps what is larger
            sizes[0] = 0 if node.op_type == "Reshape" else 1
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)
            name = f"open_batch_{i}"
            fresh.append(numpy_helper.from_array(sizes, name))
            node.input[1] = name
    inner.initializer.extend(fresh)


def _difference(path: Path, copy: Path, batch: int) -> float:
    """Return the largest relative error of the copy on several batches at once."""
    try:
        one, many = _session(path), _session(copy)
        inputs = random_inputs(read_onnx(copy).inputs, TRIED * batch, 0)
        parts = [
            one.run(None, {k: v[i : i + batch] for k, v in inputs.items()})
            for i in range(0, TRIED * batch, batch)
        ]
        names = [o.name for o in many.get_outputs()]
        expected = {k: np.concatenate([p[i] for p in parts]) for i, k in enumerate(names)}
        found = dict(zip(names, many.run(names, inputs), strict=True))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(f"the batch of {path} cannot be opened: {reason}") from error
    return max(compare_outputs(found, expected).values(), default=0.0)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
