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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mint_deploy.errors import TargetError, UnknownName

__all__ = [
    "FAMILIES",
    "MODE_FIELDS",
    "PRECISIONS",
    "PROMISES",
    "SCENARIOS",
    "Target",
    "load_target",
    "target_names",
    "to_toml",
]

FAMILIES = ("cpu", "gpu", "jetson", "arm-cpu")
PRECISIONS = ("fp32", "fp16", "int8")
SCENARIOS = ("single_stream", "offline", "multi_stream")

#: what a target may promise: points, milliseconds, megabytes, a factor
PROMISES = ("max_accuracy_drop", "latency_ms", "memory_mb", "speedup")

#: hardware figures that may depend on the power mode
MODE_FIELDS = (
    "cuda_cores",
    "tensor_cores",
    "gpu_mhz",
    "memory_gb_per_s",
    "fp16_tflops",
    "int8_tops",
    "dla_cores",
)

#: opset -> the lowest ONNX IR version that may carry it
_LOWEST_IR = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}

_CHOICES = {"family": FAMILIES, "precision": PRECISIONS, "scenario": SCENARIOS}

#: whole numbers: lowest and highest that make sense
_INTEGERS = {
    "round_to": (1, 1024),
    "batch": (1, 65536),
    "threads": (1, 1024),
    "opset": (min(_LOWEST_IR), max(_LOWEST_IR)),
    "ir_version": (7, 11),
    "memory_bytes": (1, 1 << 50),
    "cuda_cores": (0, 1 << 20),
    "tensor_cores": (0, 1 << 16),
    "dla_cores": (0, 64),
}
_FLOATS = ("gpu_mhz", "memory_gb_per_s", "fp16_tflops", "int8_tops")
_HIGHEST = 1e9
_VERSIONS = ("sm", "jetpack", "tensorrt")
_TABLES = ("power_modes", "promises", "sources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a network is prepared for. ``None``: not known, or it does not apply.

    ``round_to`` is the channel multiple that the runtime's kernels like; ``opset`` and
    ``ir_version`` are what its ONNX parser is known to read. The fields from ``sm`` on are facts
    about the hardware; those in ``MODE_FIELDS`` are the figures of ``power_mode`` where
    ``power_modes`` has them. ``int8_tops`` and ``fp16_tflops`` are dense (no structured sparsity).
    ``sources`` says where each number comes from.

    Raises:
        TargetError: a value of the wrong type or out of range; the field is named.
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
    power_mode: str | None = None
    power_modes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    promises: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"target '{self.name}'"
        for key in _PLAIN:
            value = getattr(self, key)
            if value is not None or key not in _OPTIONAL:
                object.__setattr__(self, key, _checked(key, value, where))
        lowest = _LOWEST_IR[self.opset]
        if self.ir_version < lowest:
            raise TargetError(
                f"{where}: ir_version {self.ir_version} cannot carry opset {self.opset}, "
                f"which needs at least {lowest}"
            )
        for key, table in (
            ("power_modes", _checked_modes(self.power_modes, where)),
            ("promises", _checked_promises(self.promises, where)),
            ("sources", _checked_sources(self.sources, self.power_modes, where)),
        ):
            object.__setattr__(self, key, table)
        self._check_mode(where)

    def _check_mode(self, where: str) -> None:
        if self.power_mode is not None and self.power_mode not in self.power_modes:
            raise _no_mode(where, self.power_mode, self.power_modes)
        figures = self.power_modes[self.power_mode] if self.power_mode else {}
        for key in _moded(self.power_modes):
            if getattr(self, key) != figures.get(key):
                raise TargetError(
                    f"{where}: {key} is {getattr(self, key)}, but it belongs to the power modes "
                    f"and power mode {self.power_mode!r} has {figures.get(key)}; "
                    "write it under [power_modes.NAME]"
                )

    def source(self, key: str) -> str | None:
        """Return where the number in field ``key`` comes from, or None where nobody said."""
        if self.power_mode and key in self.power_modes[self.power_mode]:
            table = f"power_modes.{self.power_mode}"
            return self.sources.get(f"{table}.{key}", self.sources.get(table))
        return self.sources.get(key)


_FIELDS = tuple(f.name for f in dataclasses.fields(Target))
_PLAIN = tuple(name for name in _FIELDS if name not in _TABLES)
_OPTIONAL = {f.name for f in dataclasses.fields(Target) if f.default is None}


# ---------------------------------------------------------------- checking values


def _unknown(what: str, name: str, known: Iterable[str]) -> TargetError:
    """Return the error for a name that is not among ``known``, with the nearest one."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return TargetError(f"{what} '{name}'{hint} known: {', '.join(names)}")


def _no_mode(where: str, mode: str, modes: Mapping[str, object]) -> TargetError:
    if not modes:
        return TargetError(
            f"{where} has no power modes, so '{mode}' cannot be chosen; leave it out"
        )
    return _unknown(f"{where} has no power mode", mode, modes)


def _moded(modes: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return the fields that any power mode sets, in the order of ``MODE_FIELDS``."""
    return [key for key in MODE_FIELDS if any(key in table for table in modes.values())]


def _checked(key: str, value: Any, where: str) -> Any:
    """Return ``value`` as the type of field ``key``; a TargetError says what is wrong with it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _INTEGERS:
        low, high = _INTEGERS[key]
        whole = number and (isinstance(value, int) or value.is_integer())
        if not whole or not low <= int(value) <= high:
            raise TargetError(
                f"{where}: {key} is {value!r}; expected a whole number from {low} to {high}"
            )
        return int(value)
    if key in _FLOATS:
        if not number or not 0 < value < _HIGHEST:
            raise TargetError(f"{where}: {key} is {value!r}; expected a number above 0")
        return float(value)
    if not isinstance(value, str):
        raise TargetError(f"{where}: {key} is {value!r}; expected a text")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise _unknown(f"{where}: {key} is", value, _CHOICES[key])
    if key in _VERSIONS and not re.fullmatch(r"\d+(\.\d+)*", value):
        raise TargetError(f"{where}: {key} is '{value}'; expected a version such as '10.3'")
    if key in ("name", "runtime") and not value.strip():
        raise TargetError(f"{where}: {key} is empty; expected a name")
    return value


def _table(value: object, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise TargetError(f"{where}: {key} is {value!r}; expected a table [{key}]")
    return value


def _checked_modes(value: object, where: str) -> dict[str, dict[str, float]]:
    modes: dict[str, dict[str, float]] = {}
    for mode, table in _table(value, "power_modes", where).items():
        place = f"{where}, power mode '{mode}'"
        modes[mode] = {}
        for key, figure in _table(table, f"power_modes.{mode}", where).items():
            if key not in MODE_FIELDS:
                raise _unknown(f"{place}: unknown key", key, MODE_FIELDS)
            modes[mode][key] = _checked(key, figure, place)
    return modes


def _checked_promises(value: object, where: str) -> dict[str, float]:
    promises = {}
    for key, figure in _table(value, "promises", where).items():
        if key not in PROMISES:
            raise _unknown(f"{where}: unknown promise", key, PROMISES)
        number = isinstance(figure, (int, float)) and not isinstance(figure, bool)
        if not number or not 0 <= figure < _HIGHEST:
            raise TargetError(f"{where}: promise {key} is {figure!r}; expected a number, 0 or more")
        promises[key] = float(figure)
    return promises


def _checked_sources(
    value: object, modes: Mapping[str, Mapping[str, object]], where: str
) -> dict[str, str]:
    known = {*_PLAIN, *(f"power_modes.{mode}" for mode in modes)}
    known |= {f"power_modes.{mode}.{key}" for mode, table in modes.items() for key in table}
    for key, text in _table(value, "sources", where).items():
        if key not in known:
            raise _unknown(f"{where}: [sources] has unknown key", key, sorted(known))
        if not isinstance(text, str) or not text.strip():
            raise TargetError(f"{where}: the source of {key} is {text!r}; expected a text")
    return dict(_table(value, "sources", where))


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
    for key in _moded(modes):
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
            raise _no_mode(f"target '{data.get('name', path.stem)}'", str(mode), modes)
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
            raise _unknown(f"{where}: unknown key", key, sorted(known))
        if key in _TABLES:
            _table(value, key, where)
    for mode, table in data.get("power_modes", {}).items():
        _table(table, f"power_modes.{mode}", where)
    return data


# ---------------------------------------------------------------- writing


def to_toml(target: Target) -> str:
    """Return ``target`` as TOML text that :func:`load_target` reads back to an equal value."""
    moded = _moded(target.power_modes)
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
