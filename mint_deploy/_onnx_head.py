"""What an ONNX file is, read where the package onnx is not: on a board with numpy alone.

    read(path) -> Head      inputs, outputs, versions, nodes (name, operator), precisions

The file is a Protocol Buffers message: a sequence of (field number, wire type, value). The numbers
of the fields read here are those of onnx.proto (ModelProto, GraphProto, NodeProto, ValueInfoProto,
TensorProto) and never change; all others are skipped, the weights too: the file is mapped, not
read. Standard library only.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ModelError

__all__ = ["Head", "Node", "read"]

#: TensorProto.DataType -> numpy's name
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_QUANTISED = ("QuantizeLinear", "DequantizeLinear")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OPEN = -1


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the graph, in the file's order."""

    name: str
    operator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands in the file beside its weights.

    ``opset`` is that of the default domain; an open dimension is -1; ``weight_types`` are those of
    the initialisers; ``external``: weights lie in another file.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    nodes: tuple[Node, ...]
    weight_types: frozenset[str]
    external: bool

    @property
    def quantised(self) -> bool:
        """Whether INT8 stands in the file, as quantisation nodes."""
        return any(node.operator in _QUANTISED for node in self.nodes)

    @property
    def half(self) -> bool:
        """Whether FP16 stands in the file, as weights of that type."""
        return "float16" in self.weight_types

    def holds(self) -> frozenset[str]:
        """The precisions that stand in the file beside fp32: ``fp16``, ``int8``."""
        found = {"fp16": self.half, "int8": self.quantised}
        return frozenset(name for name, there in found.items() if there)


def read(path: str | os.PathLike[str]) -> Head:
    """Read the head of an ONNX file.

    Raises:
        ModelError: no such file, or it is no ONNX file, or it ends too early.
    """
    where = Path(path)
    if not where.is_file():
        raise ModelError(f"no such file: {where}; expected an ONNX model")
    if where.stat().st_size == 0:
        raise ModelError(f"{where} is empty; expected an ONNX model")
    try:
        with where.open("rb") as stream:
            return _model(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{where} is no ONNX model, or is damaged ({error}); export or copy it anew"
        ) from error


# ---------------------------------------------------------------- the messages


def _model(view: memoryview) -> Head:
    ir_version, opset, graph = 0, 0, None
    for number, value in _fields(view):
        if number == 1 and isinstance(value, int):
            ir_version = value
        elif number == 7 and isinstance(value, memoryview):
            graph = value
        elif number == 8 and isinstance(value, memoryview):
            domain, version = _operator_set(value)
            opset = version if domain in ("", "ai.onnx") else opset
    if graph is None or not ir_version:
        raise ValueError("it holds no graph")
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    nodes: list[Node] = []
    weights: set[str] = set()
    types: set[str] = set()
    external = False
    for number, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, kind, outside = _tensor(value)
            weights.add(name)
            types.add(_TYPES.get(kind, f"type {kind}"))
            external = external or outside
        elif number == 11:
            inputs.append(_value(value))
        elif number == 12:
            outputs.append(_value(value))
    # old files list their initialisers among the inputs
    fed = tuple(spec for spec in inputs if spec.name not in weights)
    return Head(
        inputs=fed, outputs=tuple(outputs), opset=opset, ir_version=ir_version,
        nodes=tuple(nodes), weight_types=frozenset(types), external=external,
    )  # fmt: skip


def _operator_set(view: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(view):
        if number == 1 and isinstance(value, memoryview):
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _node(view: memoryview) -> Node:
    name = operator = ""
    for number, value in _fields(view):
        if isinstance(value, memoryview) and number in (3, 4):
            name, operator = (_text(value), operator) if number == 3 else (name, _text(value))
    return Node(name=name, operator=operator)


def _tensor(view: memoryview) -> tuple[str, int, bool]:
    name, kind, outside = "", 0, False
    for number, value in _fields(view):
        if number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, memoryview):
            name = _text(value)
        elif number == 13:
            outside = True
    return name, kind, outside


def _value(view: memoryview) -> TensorSpec:
    """A ValueInfoProto: its name, and of its TypeProto the tensor type (field 1)."""
    name, kind = "", 0
    shape: list[int] = []
    for number, value in _fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            name = _text(value)
        elif number == 2:
            for inner, tensor in _fields(value):
                if inner == 1 and isinstance(tensor, memoryview):
                    kind, shape = _tensor_type(tensor)
    return TensorSpec(name=name, shape=tuple(shape), dtype=_TYPES.get(kind, f"type {kind}"))


def _tensor_type(view: memoryview) -> tuple[int, list[int]]:
    kind = 0
    shape: list[int] = []
    for number, value in _fields(view):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, memoryview):
            dims = [v for n, v in _fields(value) if n == 1 and isinstance(v, memoryview)]
            shape = [_dimension(v) for v in dims]
    return kind, shape


def _dimension(view: memoryview) -> int:
    """``dim_value`` (field 1); a name (field 2) or nothing leaves the dimension open."""
    for number, value in _fields(view):
        if number == 1 and isinstance(value, int):
            return value
    return _OPEN


# ---------------------------------------------------------------- the wire format


def _text(view: memoryview) -> str:
    return bytes(view).decode("utf-8")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and where it ends."""
    number = shift = 0
    while True:
        byte = view[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
        if shift > 63:
            raise ValueError("a number is longer than ten bytes")
    return (number - (1 << 64) if number >> 63 else number), at


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Yield (field number, value): an int, the bytes of a message, None for fixed widths."""
    at, end = 0, len(view)
    while at < end:
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if number <= 0:
            raise ValueError("a field without a number")
        if wire == _VARINT:
            value, at = _varint(view, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(view, at)
            if size < 0 or at + size > end:
                raise ValueError("it ends in the middle of a field")
            yield number, view[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
            if at > end:
                raise ValueError("it ends in the middle of a field")
            yield number, None
        else:
            raise ValueError(f"wire type {wire} is unknown")
