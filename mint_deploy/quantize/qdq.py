"""Q/DQ nodes into an ONNX model, by ONNX Runtime's quantiser, placed as a scheme asks for."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mint_deploy.errors import InternalError, ModelError
from mint_deploy.quantize.order import put_in_order_
from mint_deploy.quantize.quietly import quiet
from mint_deploy.quantize.schemes import Scheme
from mint_deploy.quantize.source import WEIGHTED, Source
from mint_deploy.values.precision import Calibration

__all__ = ["place", "residuals"]

_NOTES = ("onnx.infer", "onnx.quant.pre_process")


def place(
    source: Source,
    calibration: Calibration,
    scheme: Scheme,
    *,
    floats: Collection[str] = (),
    only: str | None = None,
) -> bytes:
    """Return the quantised model as the bytes of a file.

    Args:
        source: the float model.
        calibration: the ranges of its tensors.
        scheme: how numbers are stored and where Q/DQ goes.
        floats: names of the nodes that stay float.
        only: quantise this node and no other.

    Raises:
        ModelError: ONNX Runtime's tools refuse the model.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    kinds = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    chosen = [n for n, _ in source.nodes(scheme.layers) if only in (None, n) and n not in floats]
    passing = _following(source, scheme, chosen)
    model = copy.deepcopy(source.model)
    with quiet():
        try:
            add_infer_metadata(model)  # its shapes are inferred: not once more for every trial
            quantizer = QDQQuantizer(
                model,
                True,  # per channel
                scheme.reduce_range,
                kinds[scheme.weight],
                kinds[scheme.activation],
                _tensor_ranges(calibration),
                [*chosen, *passing] or ["none"],  # an empty list would stand for every node
                [],
                [*scheme.layers, *scheme.passing],
                scheme.arguments(),
            )
            if scheme.lean:
                for name in residuals(source, chosen):
                    quantizer.quantize_activation_tensor(name)
            quantizer.quantize_model()
            made = quantizer.model.model
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot quantise the model: {error}") from error
    if not scheme.lean:
        _float_answers_(made)
    _tidy_(made, source.model)
    _check(made, scheme)
    content: bytes = made.SerializeToString(deterministic=True)
    return content


def _following(source: Source, scheme: Scheme, chosen: Collection[str]) -> list[str]:
    """Return the passing nodes that read a quantised tensor, in order."""
    nodes = source.model.graph.node
    quantised = {t for n in nodes if n.name in chosen for t in (*n.input, *n.output)}
    found = []
    for node in nodes:
        if node.op_type in scheme.passing and node.input and node.input[0] in quantised:
            found.append(str(node.name))
            quantised.update(node.output)
    return found


def _tensor_ranges(calibration: Calibration) -> Any:
    """The ranges as ONNX Runtime has them; made anew each time, because the quantiser changes them."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    pairs = {
        n: (np.float32(low), np.float32(high)) for n, (low, high) in calibration.ranges.items()
    }
    return TensorsData(CalibrationMethod.MinMax, pairs)


def residuals(source: Source, quantised: Collection[str]) -> tuple[str, ...]:
    """Return the tensors to quantise so that a sum becomes one int8 kernel with the layer before it.

    Of a sum of two computed tensors, one comes from a quantised layer and goes nowhere else: the runtime adds the
    other one inside of that layer's kernel. Where both do, the one that is computed first is quantised.
    """
    graph = source.model.graph
    makers = {name: (i, node) for i, node in enumerate(graph.node) for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    outputs = {value.name for value in graph.output}
    inputs = {value.name for value in graph.input}
    found: dict[str, None] = {}
    for node in graph.node:
        computed = [name for name in node.input if name in makers or name in inputs]
        if node.op_type != "Add" or len(computed) != 2 or computed[0] == computed[1]:
            continue
        fusing = [
            name
            for name in computed
            if name in makers
            and makers[name][1].op_type in WEIGHTED
            and makers[name][1].name in quantised
            and readers[name] == 1
            and name not in outputs
        ]
        if fusing:
            kept = max(fusing, key=lambda name: makers[name][0])
            found.update(dict.fromkeys(name for name in computed if name != kept))
    return tuple(found)


def _float_answers_(model: Any) -> None:
    """Take Q/DQ off the network's outputs where a Gemm or MatMul gives them: its kernels write float as well."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    gone = []
    for value in graph.output:
        last = makers.get(value.name)
        if last is None or last.op_type != "DequantizeLinear" or value.name in readers:
            continue
        first = makers.get(last.input[0])
        layer = None if first is None else makers.get(first.input[0])
        if first is None or layer is None or layer.op_type not in ("Gemm", "MatMul"):
            continue
        if len(readers[first.input[0]]) == len(readers[last.input[0]]) == 1:
            layer.output[0] = value.name
            gone += [first, last]
    for node in gone:
        graph.node.remove(node)


def _tidy_(model: Any, source: Any) -> None:
    """Drop the tools' notes and what nobody reads; versions and producer are those of the source."""
    notes: Mapping[str, str] = {p.key: p.value for p in source.metadata_props}
    del model.metadata_props[:]
    for key, value in notes.items():
        if key not in _NOTES:
            model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    model.ir_version = source.ir_version
    used = {node.domain for node in model.graph.node}
    for entry in [o for o in model.opset_import if o.domain and o.domain not in used]:
        model.opset_import.remove(entry)
    put_in_order_(model)


def _check(model: Any, scheme: Scheme) -> None:
    """Hold the result against the scheme: an older ONNX Runtime leaves out what it does not know."""
    import onnx
    from onnx import numpy_helper

    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or not scheme.lean:
            continue
        zero = numpy_helper.to_array(values[node.input[2]])
        if zero.any() or zero.dtype != np.int8:
            raise InternalError(
                f"'{node.name}' has a zero point of {zero.dtype.name} that is not 0"
            )
        stored = values.get(node.input[0])
        if stored is not None and stored.data_type == onnx.TensorProto.INT32:
            raise ModelError(
                "this ONNX Runtime quantises biases, which TensorRT does not take; update it: "
                "pip install -U onnxruntime"
            )
    onnx.checker.check_model(model, full_check=True)
