"""A Target says what a network is prepared for: runtime, precision, widths, opset, hardware.

    targets/NAME.toml   keys = the fields of :class:`Target`, and ``extends = "OTHER"``
    [power_modes.NAME]  hardware figures that hold in one power mode only
    [sources]           key -> where its number comes from; ``power_modes.NAME`` stands for a table

``load_target("jetson")`` reads ``targets/jetson.toml``; a path to a file of one's own works too,
and it may extend a shipped one. Standard library only: this file travels to the board (where a
target arrives as JSON, since Python 3.10 has no TOML reader).
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mint_deploy import _target_checks as checks
from mint_deploy._target_checks import (
    FAMILIES,
    MODE_FIELDS,
    PRECISIONS,
    PROMISES,
    SCENARIOS,
    TYPINGS,
)
from mint_deploy.errors import TargetError, UnknownName

__all__ = [
    "FAMILIES",
    "MODE_FIELDS",
    "PRECISIONS",
    "PROMISES",
    "SCENARIOS",
    "TYPINGS",
    "Target",
    "load_target",
    "target_names",
    "to_toml",
]

_TABLES = ("power_modes", "promises", "sources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a network is prepared for. ``None``: not known, or it does not apply.

    ``round_to`` is the channel multiple that the runtime's kernels like; ``opset`` and
    ``ir_version`` are what its ONNX parser is known to read. The fields from ``sm`` on are facts
    about the hardware; those in ``MODE_FIELDS`` are the figures of ``power_mode`` where
    ``power_modes`` has them. ``int8_tops`` and ``fp16_tflops`` are dense (no structured sparsity).
    ``sources`` says where each number comes from.

    ``max_batch`` to ``builds`` are for TensorRT's builder (:mod:`mint_deploy.recipe`): the largest
    batch that an engine with an open batch takes (it is tuned for ``batch``); the deep learning
    accelerator that it is built for, counted from 0 (the GPU takes what that cannot); the builder's
    scratch memory; whether the ONNX file chooses the types (``strong``) or the builder (``weak``);
    how often it is built, to keep the fastest.

    Raises:
        TargetError: a value of the wrong type or out of range, or one that contradicts another; the
            field is named.
    """

    name: str
    family: str
    description: str = ""
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    round_to: int = 8
    batch: int = 1
    scenario: str = "single_stream"
    threads: int = 1
    opset: int = 18
    ir_version: int = 8
    memory_bytes: int | None = None
    sm: str | None = None
    cuda_cores: int | None = None
    tensor_cores: int | None = None
    gpu_mhz: float | None = None
    memory_gb_per_s: float | None = None
    fp16_tflops: float | None = None
    int8_tops: float | None = None
    dla_cores: int | None = None
    jetpack: str | None = None
    tensorrt: str | None = None
    cpu_isa: str | None = None
    max_batch: int | None = None
    dla_core: int | None = None
    workspace_mib: int | None = None
    typing: str | None = None
    builds: int | None = None
    power_mode: str | None = None
    power_modes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    promises: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"target '{self.name}'"
        for key in _PLAIN:
            value = getattr(self, key)
            if value is not None or key not in _OPTIONAL:
                object.__setattr__(self, key, checks.value_of(key, value, where))
        modes = checks.modes(self.power_modes, where)
        known = {*_PLAIN, *checks.places(modes)}
        for key, table in (
            ("power_modes", modes),
            ("promises", checks.promises(self.promises, where)),
            ("sources", checks.sources(self.sources, known, where)),
        ):
            object.__setattr__(self, key, table)
        checks.check_mode(self, where)
        checks.check_together(self, where)

    def source(self, key: str) -> str | None:
        """Return where the number in field ``key`` comes from, or None where nobody said."""
        if self.power_mode and key in self.power_modes[self.power_mode]:
            table = f"power_modes.{self.power_mode}"
            return self.sources.get(f"{table}.{key}", self.sources.get(table))
        return self.sources.get(key)


_FIELDS = tuple(f.name for f in dataclasses.fields(Target))
_PLAIN = tuple(name for name in _FIELDS if name not in _TABLES)
_OPTIONAL = {f.name for f in dataclasses.fields(Target) if f.default is None}


# ---------------------------------------------------------------- reading


def _folder() -> Path:
    """Return the folder of the shipped targets: beside this file (wheel), else the checkout's."""
    here = Path(__file__).resolve().parent
    inside = here / "targets"
    return inside if inside.is_dir() else here.parent / "targets"


def target_names() -> list[str]:
    """Return the sorted names of the shipped targets."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def load_target(name_or_path: str | os.PathLike[str], *, power_mode: str | None = None) -> Target:
    """Read a shipped target by name, or a ``.toml`` file by path.

    Args:
        name_or_path: ``jetson``, or ``path/to/mine.toml`` (which may say ``extends = "jetson"``).
        power_mode: use the figures of this power mode instead of the file's own choice.

    Raises:
        UnknownName: no shipped target has this name; the nearest is suggested.
        TargetError: a file that cannot be read, an unknown key, a wrong value, a circle.
    """
    path = _find(os.fspath(name_or_path), None)
    data = _read_chain(path, ())
    where = f"target file {path.name}"
    modes = data.get("power_modes", {})
    for key in checks.moded(modes):
        if key in data:
            raise TargetError(
                f"{where}: {key} = {data[key]!r} belongs to the power modes of this target; "
                f"write it under [power_modes.NAME] ({', '.join(modes)})"
            )
    if power_mode is not None:
        data["power_mode"] = power_mode
    mode = data.get("power_mode")
    if mode is not None:
        if not isinstance(mode, str) or mode not in modes:
            raise checks.no_mode(f"target '{data.get('name', path.stem)}'", str(mode), modes)
        data.update(modes[mode])
    data.setdefault("name", path.stem)
    if "family" not in data:
        raise TargetError(
            f"{where}: key 'family' is missing ({', '.join(FAMILIES)}), or extends = \"NAME\" "
            f"of one of: {', '.join(target_names())}"
        )
    return Target(**data)


def _find(text: str, beside: Path | None) -> Path:
    """Return the file that ``text`` names: a shipped target, else a path (from ``beside``)."""
    shipped = _folder() / f"{text}.toml"
    if text in target_names():
        return shipped
    if text.endswith(".toml") or os.sep in text:
        path = (beside or Path()) / Path(text).expanduser()
        if not path.is_file():
            raise TargetError(f"no target file {path}; known targets: {', '.join(target_names())}")
        return path
    raise UnknownName("target", text, target_names())


def _read_chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file on top of what it extends; tables are merged key by key."""
    real = path.resolve()
    if real in seen:
        loop = " -> ".join(p.name for p in (*seen, real))
        raise TargetError(f"target file {path.name} extends itself: {loop}; break the circle")
    own = _read(path)
    parent = own.pop("extends", None)
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise TargetError(f"target file {path.name}: extends is {parent!r}; expected a name")
    base = _read_chain(_find(parent, path.parent), (*seen, real))
    base.pop("name", None)
    return _merged(base, own)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out


def _read(path: Path) -> dict[str, Any]:
    """Read one TOML file and check its keys and tables; values are checked by :class:`Target`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    where = f"target file {path.name}"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"cannot read target file {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TargetError(f"target file {path} is not valid TOML: {error}") from error
    known = ("extends", *_FIELDS)
    for key, value in data.items():
        if key not in known:
            raise checks.unknown(f"{where}: unknown key", key, sorted(known))
        if key in _TABLES:
            checks.table_of(value, key, where)
    for mode, table in data.get("power_modes", {}).items():
        checks.table_of(table, f"power_modes.{mode}", where)
    return data


# ---------------------------------------------------------------- writing


def to_toml(target: Target) -> str:
    """Return ``target`` as TOML text that :func:`load_target` reads back to an equal value."""
    moded = checks.moded(target.power_modes)
    lines = [
        f"{key} = {_toml(getattr(target, key))}"
        for key in _PLAIN
        if key not in moded and getattr(target, key) is not None
    ]
    tables = {f"power_modes.{_key(m)}": table for m, table in target.power_modes.items()}
    for name, table in {**tables, "promises": target.promises, "sources": target.sources}.items():
        if table or name in tables:
            lines += ["", f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _toml(text)


def _toml(value: object) -> str:
    if not isinstance(value, str):
        return repr(value)
    short = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    escaped = (short.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in value)
    return '"' + "".join(escaped) + '"'
