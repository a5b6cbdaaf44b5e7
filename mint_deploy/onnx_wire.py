"""An ONNX file read by hand: what it is, and which files beside it it wants to read.

A model may keep its weights in other files and names them by a path of its own choosing, so a file
from somebody else can ask a runtime to read anything (CVE-2022-25882, CVE-2024-5187). Here every
such path is looked at before a runtime is: one that is absolute, climbs out by ``..`` or by a link,
or points at no plain file is refused with the tensor's name. The reader walks the protobuf encoding
(protobuf.dev/programming-guides/encoding) over the numbers of onnx.proto and skips all weights, so
it needs neither the package onnx, which a board has not, nor memory. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from mint_deploy import files
from mint_deploy.errors import ModelError

__all__ = [
    "LARGEST_BYTES",
    "Message",
    "WireFacts",
    "WireNode",
    "data_files",
    "decode",
    "digest",
    "last",
    "read_wire",
    "wire_node",
]

#: the largest model that is taken, its weights in other files included
LARGEST_BYTES = 1 << 36
#: a message of protobuf ends here
_LARGEST_MESSAGE = 1 << 31
#: what a hostile file may cost: fields read, messages inside of each other, bytes of one name
_MOST_FIELDS, _DEEPEST, _LONGEST_NAME = 10_000_000, 100, 1 << 20
#: of a number of 64 bits
_SIGN = 1 << 63
#: bytes read at once
_PIECE = 1 << 16

#: a message of protobuf: our key -> the values in their order, each a number, a text or a Message
Message = dict[str, list[Any]]

#: message -> field number -> (our key, what it is): a number, a text, or another message
_FIELDS: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "int"), 7: ("graph", "Graph"), 8: ("opset_import", "OperatorSetId"),
        20: ("training_info", "TrainingInfo"), 25: ("functions", "Function"),
    },
    "OperatorSetId": {1: ("domain", "text"), 2: ("version", "int")},
    "TrainingInfo": {1: ("initialization", "Graph"), 2: ("algorithm", "Graph")},
    "Function": {7: ("node", "Node"), 11: ("attribute_proto", "Attribute")},
    "Graph": {
        1: ("node", "Node"), 5: ("initializer", "Tensor"), 11: ("input", "ValueInfo"),
        12: ("output", "ValueInfo"), 15: ("sparse_initializer", "SparseTensor"),
    },
    "ValueInfo": {1: ("name", "text"), 2: ("type", "Type")},
    "Type": {1: ("tensor_type", "Type.Tensor")},
    "Type.Tensor": {1: ("elem_type", "int"), 2: ("shape", "TensorShape")},
    "TensorShape": {1: ("dim", "TensorShape.Dimension")},
    "TensorShape.Dimension": {1: ("dim_value", "int")},
    "Node": {
        2: ("output", "text"), 3: ("name", "text"), 4: ("op_type", "text"), 5: ("attribute", "Attribute"),
        7: ("domain", "text"),
    },
    "Attribute": {
        5: ("t", "Tensor"), 6: ("g", "Graph"), 10: ("tensors", "Tensor"), 11: ("graphs", "Graph"),
        22: ("sparse_tensor", "SparseTensor"), 23: ("sparse_tensors", "SparseTensor"),
    },
    "Tensor": {
        2: ("data_type", "int"), 8: ("name", "text"), 13: ("external_data", "StringStringEntry"),
        14: ("data_location", "int"),
    },
    "SparseTensor": {1: ("values", "Tensor"), 2: ("indices", "Tensor")},
    "StringStringEntry": {1: ("key", "text"), 2: ("value", "text")},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WireNode:
    """One node; ``domain`` is empty for standard ONNX."""

    name: str
    op_type: str
    domain: str
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        kind = f"{self.domain}.{self.op_type}" if self.domain else self.op_type
        known_as = self.name or (
            f"the one that makes {self.outputs[0]}" if self.outputs else "no name"
        )
        return f"{kind} ({known_as})"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFacts:
    """What an ONNX file says of itself, sub-graphs and functions included.

    ``external``: ``(tensor, ((key, value), ...))`` of each tensor that lies in another file.
    """

    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[WireNode, ...]
    external: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def decode(path: str | os.PathLike[str]) -> Message:
    """Return the outermost message of an ONNX file, as far as ``_FIELDS`` goes: no weights.

    Raises:
        ModelError: no such file, not protobuf, cut short, larger or deeper than any model is.
    """
    try:
        size = Path(path).stat().st_size
        if not Path(path).is_file():
            raise ModelError(f"{path} is no file; expected an ONNX model")
        if size >= _LARGEST_MESSAGE:
            raise ModelError(
                f"{path} has {size:,} bytes, and an ONNX file ends below {_LARGEST_MESSAGE:,}; "
                "save its weights as external data"
            )
        with Path(path).open("rb") as stream:
            return _Reader(stream, os.fspath(path), size).message("Model", size)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def read_wire(path: str | os.PathLike[str]) -> WireFacts:
    """Read an ONNX file without its weights.

    Raises:
        ModelError: as :func:`decode`, or no graph with nodes.
    """
    model = decode(path)
    graphs = model.get("graph", [])
    if not any(graph.get("node") for graph in graphs):
        raise ModelError(f"{path} is not an ONNX file with a graph; export it anew")
    names = {t for g in graphs for i in g.get("initializer", []) for t in i.get("name", [])}
    inputs = tuple(n for g in graphs for v in g.get("input", []) for n in v.get("name", []))
    return WireFacts(
        ir_version=last(model, "ir_version", 0),
        opsets=tuple(
            (last(o, "domain", ""), last(o, "version", 0)) for o in model.get("opset_import", [])
        ),
        inputs=tuple(name for name in inputs if name not in names),
        outputs=tuple(n for g in graphs for v in g.get("output", []) for n in v.get("name", [])),
        nodes=tuple(wire_node(node) for node in _every(model, "node")),
        external=tuple(
            (
                last(tensor, "name", ""),
                tuple(
                    (last(e, "key", ""), last(e, "value", ""))
                    for e in tensor.get("external_data", [])
                ),
            )
            for kind in ("initializer", "t", "tensors", "values", "indices")
            for tensor in _every(model, kind)
            if tensor.get("external_data") or last(tensor, "data_location", 0) == 1
        ),
    )


def wire_node(node: Message) -> WireNode:
    """Return a node as a value."""
    domain = last(node, "domain", "")
    return WireNode(
        name=last(node, "name", ""),
        op_type=last(node, "op_type", ""),
        domain="" if domain == "ai.onnx" else domain,
        outputs=tuple(node.get("output", [])),
    )


def data_files(path: str | os.PathLike[str], facts: WireFacts | None = None) -> dict[str, Path]:
    """Return location -> file of the external data of an ONNX file, each proven to lie beside it.

    Raises:
        ModelError: a path that leaves the model's folder, no plain file there, or a piece that
            reaches beyond its end; the tensor is named.
    """
    facts = facts or read_wire(path)
    folder = Path(path).resolve().parent
    found: dict[str, Path] = {}
    for tensor, entries in facts.external:
        where = f"tensor '{tensor}' of {path}"
        locations = [value for key, value in entries if key == "location"]
        if not locations:
            raise ModelError(
                f"{where} is said to lie in another file, and none is named; save it anew"
            )
        for location in locations:
            if location not in found:
                found[location] = _beside(folder, location, where)
            _check_piece(found[location], entries, where)
    total = Path(path).stat().st_size + sum(f.stat().st_size for f in set(found.values()))
    if total > LARGEST_BYTES:
        raise ModelError(
            f"{path} has {total:,} bytes with its external data; at most {LARGEST_BYTES:,} are taken"
        )
    return found


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of an ONNX file, and where it has external data, of that together with it.

    Raises:
        ModelError: as :func:`data_files`.
    """
    own = files.sha256(path)
    beside = data_files(path)
    if not beside:
        return own
    whole = hashlib.sha256(own.encode())
    for location in sorted(beside):
        whole.update(f"\0{location}\0{files.sha256(beside[location])}".encode())
    return whole.hexdigest()


# ---------------------------------------------------------------- external data


def _beside(folder: Path, location: str, where: str) -> Path:
    """Return the file that ``location`` names, once it is known to lie under ``folder``."""
    advice = "a model may only read files of its own folder: put the file there and save it anew"
    shown = location if location.isprintable() else repr(location)
    windows, parts = PureWindowsPath(location), {*PurePosixPath(location).parts}
    if "\0" in location or not location.strip():
        raise ModelError(f"{where} keeps its data in {location!r}, which is no name; {advice}")
    if windows.drive or windows.root or location.startswith("/"):
        raise ModelError(f"{where} keeps its data in the absolute path '{shown}'; {advice}")
    if ".." in parts | {*windows.parts}:
        raise ModelError(f"{where} keeps its data in '{shown}', outside of its folder; {advice}")
    try:
        real = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{where} keeps its data in '{shown}', which is not beside it; copy that file too"
        ) from error
    if not real.is_relative_to(folder):
        raise ModelError(
            f"{where} keeps its data in '{shown}', a link to {real} outside of its folder; {advice}"
        )
    if not real.is_file():
        raise ModelError(f"{where} keeps its data in '{shown}', which is no plain file; {advice}")
    return real


def _check_piece(file: Path, entries: tuple[tuple[str, str], ...], where: str) -> None:
    """Check that the piece of ``file`` that a tensor asks for is there."""
    piece = {"offset": 0, "length": 0}
    for key, value in entries:
        if key in piece:
            if not (value.isascii() and value.isdigit() and len(value) < 20):
                raise ModelError(f"{where} has {key} '{value}', expected a whole number of bytes")
            piece[key] = int(value)
    size = file.stat().st_size
    if piece["offset"] + piece["length"] > size:
        raise ModelError(
            f"{where} asks for the bytes up to {piece['offset'] + piece['length']:,} of {file.name}, "
            f"which has {size:,}; it was cut short, or belongs to another model"
        )


# ---------------------------------------------------------------- the encoding


class _Reader:
    """Walks a protobuf message and keeps what ``_FIELDS`` names; the rest is skipped unread."""

    def __init__(self, stream: BinaryIO, name: str, size: int) -> None:
        self._stream, self._name, self._size = stream, name, size
        self._at = self._read = 0
        #: the piece of the file in hand, and where it begins
        self._piece, self._from = b"", 0

    def message(self, kind: str, end: int, depth: int = 0) -> Message:
        """Read up to ``end``: our key -> the values in their order."""
        if depth > _DEEPEST:
            raise ModelError(f"{self._name} has messages inside of more than {_DEEPEST} others")
        wanted = _FIELDS[kind]
        found: Message = {}
        while self._at < end:
            self._read += 1
            if self._read > _MOST_FIELDS:
                raise ModelError(
                    f"{self._name} has more than {_MOST_FIELDS:,} fields; no model has"
                )
            tag = self._varint(end)
            number, wire = tag >> 3, tag & 7
            if number == 0 or wire not in (0, 1, 2, 5):
                raise self._broken("a field that protobuf has not")
            key, what = wanted.get(number, ("", ""))
            if wire == 0:
                value = self._varint(end)
                if what == "int":  # all of ours are signed
                    found.setdefault(key, []).append((value + _SIGN) % (2 * _SIGN) - _SIGN)
                continue
            length = {1: 8, 5: 4}.get(wire) or self._varint(end)
            stop = self._at + length
            if stop > end:
                raise self._broken("a field longer than what holds it")
            if wire == 2 and what == "text":
                found.setdefault(key, []).append(self._text(length))
            elif wire == 2 and what in _FIELDS:
                found.setdefault(key, []).append(self.message(what, stop, depth + 1))
            self._at = stop
        return found

    def _hold(self, length: int) -> int:
        """Have the next ``length`` bytes in hand, as far as there are any; return where they begin."""
        begin = self._at - self._from
        if not 0 <= begin <= len(self._piece) - length:
            self._stream.seek(self._at)
            self._piece, self._from = self._stream.read(max(length, _PIECE)), self._at
            begin = 0
        return begin

    def _varint(self, end: int) -> int:
        """Read a number: groups of seven bits, the lowest first."""
        begin = at = self._hold(10)
        piece, stop = self._piece, min(len(self._piece), end - self._from)
        value = shift = 0
        while at < stop and shift < 70:
            byte = piece[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                self._at += at - begin
                return value
        raise self._broken("a number without an end")

    def _text(self, length: int) -> str:
        if length > _LONGEST_NAME:
            raise ModelError(f"{self._name} has a name of {length:,} bytes; no model has")
        begin = self._hold(length)
        return self._piece[begin : begin + length].decode("utf-8", errors="replace")

    def _broken(self, found: str) -> ModelError:
        return ModelError(
            f"{self._name} is not an ONNX file, or was cut short: {found}, at byte {self._at:,} of "
            f"{self._size:,}; copy or export it anew"
        )


def last(message: Message, key: str, default: Any) -> Any:
    """Return a single field: of several, the last one counts."""
    return message.get(key, [default])[-1]


def _every(message: Message, key: str) -> Iterator[Message]:
    """Yield the messages under ``key`` at any depth, outer ones first."""
    for name, values in message.items():
        for value in values:
            if isinstance(value, dict):
                if name == key:
                    yield value
                yield from _every(value, key)
