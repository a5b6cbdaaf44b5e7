"""An ONNX file in the hand: what it says of itself, whether it may be trusted, pinned versions.

``open_onnx`` is the door for a file from somebody else: nothing is loaded before the paths that it
names, its size and its form are looked at. No torch here, and no model: such a file is measured,
quantised and built as it is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ModelError, TargetError
from mint_deploy.onnx_tidy import LAYERS, STANDARD, every_node, tidy_
from mint_deploy.onnx_wire import data_files, digest, read_wire
from mint_deploy.runtimes import DYNAMIC

__all__ = [
    "OnnxFacts",
    "batchnorm_left",
    "describe",
    "finish",
    "load_onnx",
    "open_onnx",
    "pin_outputs_",
    "read_onnx",
    "tidy_",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """What an ONNX file says of itself; an open dimension of a tensor is ``DYNAMIC`` (-1).

    Of a file that was opened: ``sha256`` with its external data, ``external`` the names of the
    files that hold some, ``bytes`` the size of all of them.
    """

    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    operators: Mapping[str, int]
    sha256: str = ""
    external: tuple[str, ...] = ()
    bytes: int = 0


def open_onnx(path: str | os.PathLike[str]) -> OnnxFacts:
    """Check an ONNX file that came from anywhere, and say what it is.

    Args:
        path: the file; weights in other files must lie in its folder.

    Raises:
        ModelError: no such file, not ONNX, cut short, too large; external data that leaves the
            file's folder or is not there (the tensor is named); a graph that breaks ONNX's rules;
            an input or output that is no tensor.
    """
    beside = data_files(path, read_wire(path))
    facts = read_onnx(path)
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} is not a valid ONNX model: {reason}; export it anew") from error
    for spec in (*facts.inputs, *facts.outputs):
        if not spec.dtype:
            raise ModelError(
                f"'{spec.name}' of {path} is no tensor; only tensors are taken and given"
            )
    return dataclasses.replace(
        facts,
        sha256=digest(path),
        external=tuple(sorted(beside)),
        bytes=Path(path).stat().st_size + sum(f.stat().st_size for f in {*beside.values()}),
    )


def load_onnx(path: str | os.PathLike[str]) -> Any:
    """Return an ONNX file that :func:`open_onnx` accepts as a ModelProto with all its weights.

    Raises:
        ModelError: as :func:`open_onnx`.
    """
    open_onnx(path)
    return onnx.load(os.fspath(path))


def read_onnx(path: str | os.PathLike[str]) -> OnnxFacts:
    """Read an ONNX file and say what it is.

    Raises:
        ModelError: no such file, or not ONNX.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError has no public base class
        raise ModelError(f"{path} is not an ONNX file ({error}); export it anew") from error
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX file with a graph; export it anew")
    return describe(model)


def describe(model: Any) -> OnnxFacts:
    """Say what an ONNX model is."""
    counts: dict[str, int] = {}
    for node in every_node(model.graph):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    weights = {tensor.name for tensor in model.graph.initializer}
    return OnnxFacts(
        opset=max((o.version for o in model.opset_import if o.domain in STANDARD), default=0),
        ir_version=int(model.ir_version),
        inputs=tuple(_spec(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_spec(v) for v in model.graph.output),
        metadata={p.key: p.value for p in model.metadata_props},
        operators=dict(sorted(counts.items())),
    )


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(int(d.dim_value) if d.HasField("dim_value") else DYNAMIC for d in tensor.shape.dim)
    if not value.type.HasField("tensor_type") or not tensor.elem_type:
        return TensorSpec(name=value.name, shape=dims, dtype="")  # a sequence, a map
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, shape=dims, dtype=str(dtype))


# ---------------------------------------------------------------- pinning and checking


def batchnorm_left(model: Any) -> str:
    """Say how much BatchNorm is left in the graph, and whether a runtime can still fold it."""
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    left = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    if not left:
        return "all folded"
    behind = sum(maker.get(node.input[0]) in LAYERS for node in left)
    return f"{len(left)} left, {behind} of them behind a layer that a runtime can fold them into"


def pin_outputs_(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the known shape of each output; ``DYNAMIC`` becomes an open dimension with a name."""
    for value in model.graph.output:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for axis, size in enumerate(shapes[value.name]):
                dim = value.type.tensor_type.shape.dim.add()
                if size == DYNAMIC:
                    dim.dim_param = f"{value.name}_{axis}" if axis else "batch"
                else:
                    dim.dim_value = size


def finish(model: Any, *, opset: int, ir_version: int, metadata: Mapping[str, str]) -> bytes:
    """Pin the versions, infer the shapes, check the model in full, and return the bytes of a file.

    Raises:
        TargetError: the exporter did not write the opset that was asked for.
        ModelError: an operator outside of standard ONNX (named), or what the checker says.
    """
    facts = describe(model)
    if facts.opset != opset:
        raise TargetError(
            f"the target asks for opset {opset} and PyTorch's exporter wrote {facts.opset}; "
            f"choose another opset in the target"
        )
    for node in every_node(model.graph):
        if node.domain not in STANDARD:
            raise ModelError(
                f"layer '{node.name}' became the operator {node.domain}.{node.op_type}, which is "
                "not standard ONNX and which no target's parser is sure to know; rewrite that layer"
            )
    del model.functions[:]
    for entry in [o for o in model.opset_import if o.domain not in STANDARD]:
        model.opset_import.remove(entry)
    model.ir_version = ir_version
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    try:
        model = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported ONNX model is not valid: {error}") from error
    written: bytes = model.SerializeToString(deterministic=True)
    return written
