"""Every value is a file: JSON with ``kind``, ``schema`` and the version that wrote it, or npz.

A file is written under a temporary name and renamed, so a killed process leaves either the old
file or the new one. Nothing here ever unpickles. Standard library and numpy only: this file
travels to the board.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mint_deploy import artifacts
from mint_deploy._version import __version__
from mint_deploy.errors import DataError

__all__ = [
    "atomic",
    "decode",
    "encode",
    "read_arrays",
    "read_json",
    "read_value",
    "sha256",
    "write_arrays",
    "write_json",
    "write_value",
]

T = TypeVar("T")

#: letters of an object that still stands on one line, of a line of short entries, and of such an entry
ONE_LINE, WRAP, SHORT = 200, 100, 24


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to it."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------- JSON


def encode(value: Any) -> Any:
    """Turn values, mappings, sequences and numpy scalars into plain JSON objects."""
    if isinstance(value, artifacts.Member):
        return {
            "tensor": value.tensor,
            "dim": value.dim,
            "length": value.length,
            "reads": value.reads,
            "index": _pack_index(np.asarray(value.index)),
        }
    if isinstance(value, artifacts.Positions):
        return {"group": value.group, "index": _pack_index(np.asarray(value.index))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, np.ndarray):
        return encode(value.tolist())
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def decode(cls: type[T], data: Any, *, where: str = "") -> T:
    """Build a value of ``cls`` from its JSON object.

    Raises:
        DataError: a key is missing, unknown, or of the wrong type; the key is named.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise DataError(f"{where}: expected an object, found {type(data).__name__}")
    if cls is artifacts.Member:
        return typing.cast(T, _decode_member(data, where))
    if cls is artifacts.Positions:
        return typing.cast(T, _decode_positions(data, where))
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise DataError(f"{where}: unknown key '{unknown[0]}'; known: {', '.join(sorted(fields))}")
    out = {}
    for name, f in fields.items():
        if name in data:
            out[name] = _decode_as(hints[name], data[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}: key '{name}' is missing")
    return cls(**out)


def _decode_as(hint: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return _decode_as(next(a for a in args if a is not type(None)), data, where)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), data, where=where)
    if origin is tuple:
        if not isinstance(data, list):
            raise DataError(f"{where}: expected a list, found {type(data).__name__}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode_as(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
        if len(args) != len(data):
            raise DataError(f"{where}: expected {len(args)} entries, found {len(data)}")
        return tuple(_decode_as(a, v, where) for a, v in zip(args, data, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise DataError(f"{where}: expected an object, found {type(data).__name__}")
        return {k: _decode_as(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(hint, type) and (
        not isinstance(data, hint) or (hint is int and isinstance(data, bool))
    ):
        raise DataError(f"{where}: expected {hint.__name__}, found {data!r}")
    return data


def _pack_index(index: np.ndarray) -> Any:
    """``[units, m]`` -> ``[start, step, m]`` where it is regular (nearly always), else the lists."""
    if index.size and index.ndim == 2:
        start, block = int(index[0, 0]), index.shape[1]
        step = int(index[1, 0] - index[0, 0]) if len(index) > 1 else block
        regular = start + step * np.arange(len(index))[:, None] + np.arange(block)
        if np.array_equal(index, regular):
            return {"start": start, "step": step, "block": block, "units": len(index)}
    return index.tolist()


def _unpack_index(packed: Any) -> artifacts.Ints:
    if isinstance(packed, dict):
        units = np.arange(packed["units"])[:, None] * packed["step"] + packed["start"]
        index: artifacts.Ints = units + np.arange(packed["block"])
    else:
        index = np.asarray(packed, dtype=np.int64)
        index = index.reshape(len(packed), -1)
    return index.astype(np.int64)


def _decode_positions(data: dict[str, Any], where: str) -> artifacts.Positions:
    try:
        return artifacts.Positions(group=str(data["group"]), index=_unpack_index(data["index"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not positions of a pruning group ({error})") from error


def _decode_member(data: dict[str, Any], where: str) -> artifacts.Member:
    try:
        return artifacts.Member(
            tensor=str(data["tensor"]),
            dim=int(data["dim"]),
            length=int(data["length"]),
            reads=bool(data["reads"]),
            index=_unpack_index(data["index"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a member of a pruning group ({error})") from error


def write_json(path: str | os.PathLike[str], data: Any, *, kind: str) -> None:
    """Write a JSON object headed by ``kind``, ``schema`` and ``written_by``, atomically."""
    body = {"kind": kind, "schema": artifacts.SCHEMA, "written_by": f"mint-deploy {__version__}"}
    body.update(encode(data))
    with atomic(path) as part:
        part.write_text(_readable(body) + "\n", encoding="utf-8")


def _readable(value: Any, depth: int = 0) -> str:
    """JSON for people: what fits on a line stands on one, and lists of short entries are wrapped."""
    if not isinstance(value, (dict, list)) or not value:
        return json.dumps(value, allow_nan=False)
    if isinstance(value, dict):
        left, right = "{", "}"
        parts = [f"{json.dumps(k)}: {_readable(v, depth + 1)}" for k, v in value.items()]
    else:
        left, right = "[", "]"
        parts = [_readable(v, depth + 1) for v in value]
    flat = ", ".join(parts)
    if depth and len(flat) <= ONE_LINE and "\n" not in flat:
        return left + flat + right
    pad = " " * (depth + 1)
    if isinstance(value, list) and max(map(len, parts)) <= SHORT:
        body = f"\n{pad}".join(_wrapped(parts))
    else:
        body = f",\n{pad}".join(parts)
    return f"{left}\n{pad}{body}\n{pad[:-1]}{right}"


def _wrapped(parts: list[str]) -> Iterator[str]:
    """Yield lines of comma-separated parts."""
    line = ""
    for i, part in enumerate(parts):
        text = part if i + 1 == len(parts) else part + ","
        if line and len(line) + 1 + len(text) > WRAP:
            yield line
            line = text
        else:
            line = f"{line} {text}" if line else text
    yield line


def read_json(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """Read a JSON object and check its head.

    Raises:
        DataError: missing, truncated, of another kind, or of a newer schema.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged or not JSON ({error}); write it anew") from error
    if not isinstance(data, dict) or data.get("kind") != kind:
        found = data.get("kind") if isinstance(data, dict) else type(data).__name__
        raise DataError(f"{path} is a {found!r}, expected a {kind!r}")
    schema = data.get("schema")
    if not isinstance(schema, int) or schema > artifacts.SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}, this version reads up to {artifacts.SCHEMA}; "
            "update mint-deploy"
        )
    return data


def write_value(path: str | os.PathLike[str], value: Any) -> None:
    """Write one value of :mod:`mint_deploy.artifacts` as JSON (kind: its class name)."""
    write_json(path, value, kind=type(value).__name__)


def read_value(path: str | os.PathLike[str], cls: type[T]) -> T:
    """Read one value of :mod:`mint_deploy.artifacts` back."""
    data = read_json(path, kind=cls.__name__)
    return decode(cls, {k: v for k, v in data.items() if k not in ("kind", "schema", "written_by")})


# ---------------------------------------------------------------- npz


def write_arrays(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write named arrays and a JSON header into one npz, atomically; equal input, equal bytes."""
    text = json.dumps(encode({"schema": artifacts.SCHEMA, **header}), allow_nan=False)
    payload = {"__header__": np.frombuffer(text.encode(), dtype=np.uint8)}
    payload.update({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    # not through memory: a large network's moments fill a gigabyte
    with atomic(path) as part, part.open("wb") as stream:
        np.savez(stream, **typing.cast(Any, payload))


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what :func:`write_arrays` wrote (never unpickles).

    Raises:
        DataError: missing, truncated, or not one of ours.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays.pop("__header__").tobytes())
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: no such file") from error
    except Exception as error:
        raise DataError(f"{path} is damaged or not written by mint-deploy ({error})") from error
    return header, arrays
