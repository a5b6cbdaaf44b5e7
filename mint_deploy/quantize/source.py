"""The float32 file that a network of lower precision is made of, brought into the form that the tools need.

BatchNorm is folded into the layer before it, weights are initializers, nodes have names, tensors have shapes.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_deploy.errors import ModelError
from mint_deploy.onnx_cost import layer_costs
from mint_deploy.onnx_file import load_onnx
from mint_deploy.quantize.quietly import quiet

__all__ = ["LOWEST_OPSET", "WEIGHTED", "Source", "read_source"]

#: the first opset whose DequantizeLinear has a scale for each channel
LOWEST_OPSET = 13
#: operators with the arithmetic that lower precision makes fast
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STANDARD = ("", "ai.onnx")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A prepared model (a ModelProto; copy it before you change it) and what its layers cost.

    ``macs``: node -> multiply-adds of one sample, for the nodes in ``WEIGHTED``; empty where the file leaves
    sizes open.
    """

    model: Any
    macs: dict[str, int]

    def bytes(self) -> bytes:
        """The prepared model as a file."""
        content: bytes = self.model.SerializeToString(deterministic=True)
        return content

    def nodes(self, operators: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Name and operator of the nodes with one of ``operators``, in the order of execution."""
        return tuple((n.name, n.op_type) for n in self.model.graph.node if n.op_type in operators)


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read and prepare an ONNX file; weights beside it may lie in its own folder alone.

    Raises:
        ModelError: a file that :func:`mint_deploy.onnx_file.open_onnx` refuses, not float32, quantised already,
            an operator outside of standard ONNX, an opset that cannot be raised, or no layer with weights.
    """
    import onnx

    model = load_onnx(path)
    _check(model, path)
    model = _raised(model, path)
    if _needs_folding(model):
        model = _folded(model)
    _name_nodes_(model)
    with quiet():
        try:
            model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
        except Exception as error:  # InferenceError, and protobuf's own
            raise ModelError(f"the shapes of {path} do not fit together: {error}") from error
    return Source(model=model, macs=_macs(model))


def _check(model: Any, path: str | os.PathLike[str]) -> None:
    import onnx

    graph = model.graph
    if not graph.node:
        raise ModelError(f"{path} is not an ONNX file with a graph; export it anew")
    operators = {node.op_type for node in graph.node}
    if found := sorted(operators.intersection(_QUANTISED)):
        raise ModelError(
            f"{path} is quantised already (it has {found[0]}); give the float32 file that it was made of"
        )
    odd = next((n for n in graph.node if n.domain not in _STANDARD), None)
    if odd is not None:
        raise ModelError(
            f"layer '{odd.name}' of {path} is the operator {odd.domain}.{odd.op_type}, which is not standard "
            "ONNX; export the model without a runtime's own optimisations"
        )
    if not operators.intersection(WEIGHTED):
        raise ModelError(
            f"{path} has no layer with weights ({', '.join(WEIGHTED)}); lower precision would gain nothing"
        )
    kinds = {t.data_type for t in graph.initializer if len(t.dims) > 1}
    if kinds and onnx.TensorProto.FLOAT not in kinds:
        names = ", ".join(sorted(onnx.TensorProto.DataType.Name(k).lower() for k in kinds))
        raise ModelError(f"the weights of {path} are {names}; expected float32")


def _raised(model: Any, path: str | os.PathLike[str]) -> Any:
    """Return the model with at least ``LOWEST_OPSET``."""
    import onnx

    opset = max((o.version for o in model.opset_import if o.domain in _STANDARD), default=0)
    if opset >= LOWEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, LOWEST_OPSET)
    except Exception as error:  # the converter raises RuntimeError, or protobuf's own
        raise ModelError(
            f"{path} has opset {opset}, scales for each channel need {LOWEST_OPSET}, and it cannot be raised "
            f"({error}); export it with opset {LOWEST_OPSET} or later"
        ) from error


def _needs_folding(model: Any) -> bool:
    """Whether a BatchNorm is left, or weights are computed (Constant, Identity) instead of stored."""
    graph = model.graph
    if any(node.op_type == "BatchNormalization" for node in graph.node):
        return True
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return any(
        makers.get(name) in ("Constant", "Identity")
        for node in graph.node
        if node.op_type in WEIGHTED
        for name in node.input[1:]
    )


def _folded(model: Any) -> Any:
    """Return the model after ONNX Runtime's plain optimisations, with its own names and notes kept."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder, quiet():
        before, after = Path(folder) / "before.onnx", Path(folder) / "folded.onnx"
        try:
            onnx.save(model, before)
            quant_pre_process(before, after, skip_symbolic_shape=True)
            folded = onnx.load(after)
        except Exception as error:
            raise ModelError(f"BatchNorm could not be folded into the layers: {error}") from error
    odd = next((n for n in folded.graph.node if n.domain not in _STANDARD), None)
    if odd is not None:
        raise ModelError(
            f"folding made {odd.domain}.{odd.op_type} of layer '{odd.name}', which is not standard ONNX; "
            "export the model with BatchNorm folded"
        )
    folded.ir_version = model.ir_version
    del folded.metadata_props[:]
    folded.metadata_props.extend(model.metadata_props)
    used = {node.domain for node in folded.graph.node}
    for entry in [o for o in folded.opset_import if o.domain and o.domain not in used]:
        folded.opset_import.remove(entry)
    return folded


def _name_nodes_(model: Any) -> None:
    """Give every node a name of its own."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        stem = node.name or f"{node.op_type}_{i}"
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        node.name = name
        taken.add(name)


def _macs(model: Any) -> dict[str, int]:
    """Return node -> multiply-adds of one sample."""
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            costs = layer_costs(path)
        except ModelError:
            return {}
    counted = [n.name for n in model.graph.node if n.op_type in WEIGHTED]
    if len(counted) != len(costs):  # recurrent layers are counted, too, and stay float
        return {}
    return {name: int(cost["macs"]) for name, cost in zip(counted, costs, strict=True)}
