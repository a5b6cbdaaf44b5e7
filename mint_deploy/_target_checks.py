"""What a target may say: each field's type and range, and which fields must agree.

The words and figures of :class:`mint_deploy.target.Target` are checked here, whether they come from
a TOML file, from a bundle's JSON or from Python; each refusal is a TargetError that begins with
``where``, names the field and says what was expected. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mint_deploy.errors import TargetError

if TYPE_CHECKING:
    from mint_deploy.target import Target

__all__ = [
    "FAMILIES",
    "MODE_FIELDS",
    "PRECISIONS",
    "PROMISES",
    "SCENARIOS",
    "TYPINGS",
    "check_mode",
    "check_together",
    "moded",
    "modes",
    "no_mode",
    "places",
    "promises",
    "sources",
    "table_of",
    "unknown",
    "value_of",
]

FAMILIES = ("cpu", "gpu", "jetson", "arm-cpu")
PRECISIONS = ("fp32", "fp16", "int8")
SCENARIOS = ("single_stream", "offline", "multi_stream")
#: who chooses the types in an engine of TensorRT: its builder, or the ONNX file
TYPINGS = ("weak", "strong")

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

_CHOICES = {
    "family": FAMILIES,
    "precision": PRECISIONS,
    "scenario": SCENARIOS,
    "typing": TYPINGS,
}

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
    "max_batch": (1, 65536),
    "dla_core": (0, 63),
    "workspace_mib": (1, 1 << 30),
    "builds": (1, 1000),
}
_FLOATS = ("gpu_mhz", "memory_gb_per_s", "fp16_tflops", "int8_tops")
_HIGHEST = 1e9
_VERSIONS = ("sm", "jetpack", "tensorrt")
_MIB = 1 << 20


# ---------------------------------------------------------------- names


def unknown(what: str, name: str, known: Iterable[str]) -> TargetError:
    """Return the error for a name that is not among ``known``, with the nearest one."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return TargetError(f"{what} '{name}'{hint} known: {', '.join(names)}")


def no_mode(where: str, mode: str, known: Mapping[str, object]) -> TargetError:
    """Return the error for a power mode that the target has not."""
    if not known:
        return TargetError(
            f"{where} has no power modes, so '{mode}' cannot be chosen; leave it out"
        )
    return unknown(f"{where} has no power mode", mode, known)


def moded(tables: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return the fields that any power mode sets, in the order of ``MODE_FIELDS``."""
    return [key for key in MODE_FIELDS if any(key in table for table in tables.values())]


def places(tables: Mapping[str, Mapping[str, object]]) -> set[str]:
    """Return how ``sources`` may name the power modes and the figures in them."""
    figures = {f"power_modes.{mode}.{key}" for mode, table in tables.items() for key in table}
    return figures | {f"power_modes.{mode}" for mode in tables}


# ---------------------------------------------------------------- one value, one table


def value_of(key: str, value: Any, where: str) -> Any:
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
        raise unknown(f"{where}: {key} is", value, _CHOICES[key])
    if key in _VERSIONS and not re.fullmatch(r"\d+(\.\d+)*", value):
        raise TargetError(f"{where}: {key} is '{value}'; expected a version such as '10.3'")
    if key in ("name", "runtime") and not value.strip():
        raise TargetError(f"{where}: {key} is empty; expected a name")
    return value


def table_of(value: object, key: str, where: str) -> Mapping[str, Any]:
    """Return ``value`` where it is a table with text as keys; a TargetError otherwise."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise TargetError(f"{where}: {key} is {value!r}; expected a table [{key}]")
    return value


def modes(value: object, where: str) -> dict[str, dict[str, float]]:
    """Return the power modes: name -> hardware figure -> number."""
    found: dict[str, dict[str, float]] = {}
    for mode, table in table_of(value, "power_modes", where).items():
        place = f"{where}, power mode '{mode}'"
        found[mode] = {}
        for key, figure in table_of(table, f"power_modes.{mode}", where).items():
            if key not in MODE_FIELDS:
                raise unknown(f"{place}: unknown key", key, MODE_FIELDS)
            found[mode][key] = value_of(key, figure, place)
    return found


def promises(value: object, where: str) -> dict[str, float]:
    """Return the promises: name -> number, 0 or more."""
    found = {}
    for key, figure in table_of(value, "promises", where).items():
        if key not in PROMISES:
            raise unknown(f"{where}: unknown promise", key, PROMISES)
        number = isinstance(figure, (int, float)) and not isinstance(figure, bool)
        if not number or not 0 <= figure < _HIGHEST:
            raise TargetError(f"{where}: promise {key} is {figure!r}; expected a number, 0 or more")
        found[key] = float(figure)
    return found


def sources(value: object, known: Collection[str], where: str) -> dict[str, str]:
    """Return the sources: key (one of ``known``) -> text."""
    found = table_of(value, "sources", where)
    for key, text in found.items():
        if key not in known:
            raise unknown(f"{where}: [sources] has unknown key", key, sorted(known))
        if not isinstance(text, str) or not text.strip():
            raise TargetError(f"{where}: the source of {key} is {text!r}; expected a text")
    return dict(found)


# ---------------------------------------------------------------- what must agree


def check_mode(target: Target, where: str) -> None:
    """Check that the hardware figures are those of the chosen power mode."""
    tables, mode = target.power_modes, target.power_mode
    if mode is not None and mode not in tables:
        raise no_mode(where, mode, tables)
    figures = tables[mode] if mode else {}
    for key in moded(tables):
        if getattr(target, key) != figures.get(key):
            raise TargetError(
                f"{where}: {key} is {getattr(target, key)}, but it belongs to the power modes "
                f"and power mode {mode!r} has {figures.get(key)}; "
                "write it under [power_modes.NAME]"
            )


def check_together(target: Target, where: str) -> None:
    """Check the fields that bound each other: opset and IR, batches, accelerators, memory."""
    lowest = _LOWEST_IR[target.opset]
    if target.ir_version < lowest:
        raise TargetError(
            f"{where}: ir_version {target.ir_version} cannot carry opset {target.opset}, "
            f"which needs at least {lowest}"
        )
    if target.max_batch is not None and target.max_batch < target.batch:
        raise TargetError(
            f"{where}: max_batch is {target.max_batch}, below batch {target.batch}, which the engine "
            "is tuned for; raise it, or leave it out"
        )
    core, cores = target.dla_core, target.dla_cores
    if core is not None and cores is not None and core >= cores:
        have = f"the device has {cores}, counted from 0" if cores else "the device has none"
        raise TargetError(
            f"{where}: dla_core is {core}, and {have} (dla_cores); "
            + ("choose a lower one" if cores else "leave dla_core out to build for the GPU")
        )
    scratch, memory = target.workspace_mib, target.memory_bytes
    if scratch is not None and memory is not None and scratch * _MIB > memory:
        raise TargetError(
            f"{where}: workspace_mib is {scratch}, and the device has {memory // _MIB} MiB in all "
            "(memory_bytes); leave it out for a quarter of that"
        )
