"""A float32 ONNX model in float16, strongly typed: the types stand in the file, as casts.

TensorRT 11 takes the precision from the file alone; earlier releases take a flag instead
(:mod:`mint_deploy.recipe`). What float16 cannot hold (beyond 65504) becomes infinite there, so layers whose
tensors come near it stay float32.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np

from mint_deploy.errors import ModelError
from mint_deploy.quantize.order import put_in_order_
from mint_deploy.quantize.quietly import quiet
from mint_deploy.quantize.source import WEIGHTED, Source
from mint_deploy.values.precision import Calibration, FloatLayer

__all__ = ["LARGEST", "halve", "too_large"]

#: a tensor may reach this on calibration samples: half of what float16 holds, for other samples reach further
LARGEST = 32752.0


def too_large(source: Source, calibration: Calibration) -> tuple[FloatLayer, ...]:
    """Return the layers that have to stay float32: what they read, write or hold does not fit into float16."""
    from onnx import numpy_helper

    largest = {n: max(abs(low), abs(high)) for n, (low, high) in calibration.ranges.items()}
    for tensor in source.model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size:
            largest[tensor.name] = float(np.abs(values).max())
    found = []
    for node in source.model.graph.node:
        reached = {name: largest[name] for name in (*node.input, *node.output) if name in largest}
        name = max(reached, key=lambda n: reached[n], default="")
        if name and reached[name] > LARGEST:
            reason = f"tensor '{name}' reaches {reached[name]:.3g}; float16 ends at 65504"
            found.append(FloatLayer(name=node.name, operator=node.op_type, reason=reason))
    return tuple(found)


def halve(
    source: Source,
    *,
    floats: Collection[str] = (),
    only: str | None = None,
    float_borders: bool = True,
) -> bytes:
    """Return the model in float16 as the bytes of a file.

    Args:
        source: the float32 model.
        floats: names of the nodes that stay float32.
        only: convert this node and no other.
        float_borders: inputs and outputs stay float32, with casts behind and before them.

    Raises:
        ModelError: ONNX Runtime's converter refuses the model, or what it makes is not valid.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    blocked = set(floats)
    if only is not None:
        blocked = {node.name for node in source.model.graph.node if node.name != only}
    model = copy.deepcopy(source.model)
    with quiet():
        try:
            made = convert_float_to_float16(
                model,
                keep_io_types=float_borders,
                disable_shape_infer=True,  # they are inferred already
                node_block_list=sorted(blocked),
            )
            made.ir_version = source.model.ir_version
            put_in_order_(made)
            _cancel_casts_(made)
            put_in_order_(made)
            onnx.checker.check_model(made, full_check=True)
        except Exception as error:
            raise ModelError(f"the model cannot be converted to float16: {error}") from error
    if only is None and not any(
        n.op_type in WEIGHTED and n.name not in blocked for n in made.graph.node
    ):
        raise ModelError("no layer with weights fits into float16; stay with float32")
    content: bytes = made.SerializeToString(deterministic=True)
    return content


def _cancel_casts_(model: Any) -> None:
    """Take out casts to float16 that are cast back: between layers that stay float32, and at outputs."""
    import onnx

    graph = model.graph
    outputs = {value.name for value in graph.output}
    given = {value.name for value in (*graph.input, *graph.initializer)}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def casts(node: Any, kind: int) -> bool:
        return node.op_type == "Cast" and any(
            a.name == "to" and a.i == kind for a in node.attribute
        )

    gone, renamed = [], {}
    for node in graph.node:
        after = readers.get(node.output[0], [])
        down = casts(node, onnx.TensorProto.FLOAT16) and node.output[0] not in outputs
        if not down or not after or not all(casts(n, onnx.TensorProto.FLOAT) for n in after):
            continue
        source = node.input[0]
        last = [n.output[0] for n in after if n.output[0] in outputs]
        if last and (source in given or source in outputs or len(last) > 1):
            continue
        renamed.update(dict.fromkeys((n.output[0] for n in after), source))
        if last:
            renamed[source] = last[0]
        gone += [node, *after]
    for node in gone:
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                name = renamed.get(name, name) if names is node.input else name
                names[i] = renamed.get(name, name) if name not in outputs else name
