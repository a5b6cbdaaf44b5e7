"""A machine's record and what moved on it meanwhile, as rows of text; a gap says why it is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mint_deploy.report import words
from mint_deploy.report.plaintext import title_text, value_text

__all__ = ["machine_groups", "machine_rows", "state_columns"]

_NOT_READABLE = "not readable here"
_GROUPS = ("System", "CPU", "Clocks", "GPU", "Board", "Versions", "More")
#: fields of Machine and names in its details: group and title, in the order of the page
_KNOWN = {
    "hostname": ("System", "Host"),
    "system": ("System", "System"),
    "kernel": ("System", "Kernel"),
    "virtualization": ("System", "Virtualisation"),
    "memory_bytes": ("System", "Memory"),
    "memory_available_bytes": ("System", "Memory available"),
    "load_average": ("System", "Load average"),
    "load": ("System", "Load over minutes"),
    "cpu": ("CPU", "CPU"),
    "cores": ("CPU", "Cores"),
    "processors": ("CPU", "Processors seen"),
    "affinity_cores": ("CPU", "Affinity"),
    "cpu_quota_cores": ("CPU", "CPU quota"),
    "architecture": ("CPU", "Architecture"),
    "simd": ("CPU", "SIMD"),
    "smt": ("CPU", "SMT"),
    "governor": ("Clocks", "CPU governor"),
    "frequency_mhz": ("Clocks", "Clock"),
    "frequency_min_mhz": ("Clocks", "Clock limit, low"),
    "frequency_max_mhz": ("Clocks", "Clock limit, high"),
    "hardware_min_mhz": ("Clocks", "Hardware, low"),
    "hardware_max_mhz": ("Clocks", "Hardware, high"),
    "frequency_driver": ("Clocks", "Frequency driver"),
    "energy_preference": ("Clocks", "Energy preference"),
    "turbo": ("Clocks", "Turbo"),
    "steal_since_boot": ("Clocks", "Steal since boot"),
    "energy": ("Clocks", "Energy counter"),
    "gpu": ("GPU", "GPU"),
    "board": ("Board", "Board"),
    "power_mode": ("Board", "Power mode"),
    "nvpmodel": ("Board", "nvpmodel"),
    "l4t": ("Board", "L4T"),
    "python": ("Versions", "Python"),
}
#: details that hold a group of their own
_PARTS = {"gpu": "GPU", "jetson": "Board"}
#: words in a detail's name that is not known -> its group; the first that fits counts
_WORDS = (
    ("GPU", ("gpu", "nvidia", "cuda", "persistence", "mig", "sm_")),
    ("Board", ("board", "l4t", "jetpack", "nvp", "jetson")),
    (
        "Clocks",
        ("mhz", "khz", "freq", "clock", "turbo", "boost", "throttl", "steal", "temperature"),
    ),
    ("CPU", ("cpu", "core", "smt", "simd", "processor", "cache", "numa")),
    ("Versions", ("version", "library", "package")),
    ("System", ("kernel", "memory", "load", "swap", "container", "virtual")),
)
#: ends of names, and how such a figure is printed
_UNITS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("_bytes", words.bytes_),
    ("_mhz", lambda v: f"{words.significant(v, 4)} MHz"),
    ("_w", lambda v: f"{words.significant(v)} W"),
    ("_cores", lambda v: f"{v:g}"),
    ("steal_since_boot", words.share),
    ("_c", lambda v: f"{words.fixed(v, 0)} °C"),
)  # fmt: skip
#: what MachineState holds: title, how a figure is printed
_STATES: dict[str, tuple[str, Callable[[float], str]]] = {
    "load_average": ("Load", lambda v: words.significant(v, 2)),
    "steal": ("Steal", words.share),
    "other_cpu": ("Other CPU", lambda v: f"{words.significant(v, 2)} cores"),
    "frequency_mhz": ("CPU clock", lambda v: f"{words.fixed(v, 0)} MHz"),
    "throttled": ("Throttled", lambda v: f"{v:.0f} times"),
    "quota_stops": ("Quota stops", lambda v: f"{v:.0f}"),
    "temperature_c": ("Temperature", lambda v: f"{words.fixed(v, 0)} °C"),
    "gpu_mhz": ("GPU clock", lambda v: f"{words.fixed(v, 0)} MHz"),
}

Row = tuple[str, str]


def machine_groups(machine: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return a machine's record in groups of rows; what could not be read says so, with the reason if known.

    Fields of one group that lack the same thing share a row.
    """
    groups: dict[str, list[Row]] = {name: [] for name in _GROUPS}
    lacking: dict[tuple[str, str], list[str]] = {}
    for group, title, value, why in _entries(machine):
        if value is None:
            lacking.setdefault((group, why), []).append(title)
        else:
            groups[group].append((title, value))
    for (group, why), titles in lacking.items():
        groups[group].append((", ".join(titles), why))
    return [(name, rows) for name, rows in groups.items() if rows]


def machine_rows(machine: Mapping[str, Any]) -> list[Row]:
    """Return the same row by row: one for each field, whether it is there or not."""
    found = list(_entries(machine))
    found.sort(key=lambda entry: _GROUPS.index(entry[0]))
    return [(title, why if value is None else value) for _, title, value, why in found]


def _entries(machine: Mapping[str, Any]) -> Iterable[tuple[str, str, str | None, str]]:
    """Yield ``(group, title, text or None, why it is None)`` for all that a record holds or lacks."""
    details = dict(machine.get("details") or {})
    why = {str(k): words.plain(v) for k, v in (details.pop("nulls", None) or {}).items()}
    parts = {k: details.pop(k) for k in _PARTS if isinstance(details.get(k), Mapping)}
    own = {k: v for k, v in machine.items() if k in _KNOWN}
    own["memory_bytes"] = machine.get("memory_bytes") or None  # old records say 0
    rest = {k: v for k, v in details.items() if k not in own}
    told = {**own, **rest, **{k: None for k in why if "." not in k and k not in (*own, *rest)}}
    order = list(_KNOWN)
    for name in sorted(told, key=lambda k: order.index(k) if k in _KNOWN else len(order)):
        group, title = _KNOWN.get(name) or (_group(name), title_text(name))
        yield group, title, _text(name, told[name]), _gap(why.get(name))
    for part, found in parts.items():
        lacks = [k.removeprefix(f"{part}.") for k in why if k.startswith(f"{part}.")]
        for name, value in {**dict.fromkeys(lacks), **found}.items():
            if value is not None or f"{part}.{name}" in why:
                if (part, name) == ("gpu", "name"):
                    continue  # it is the field `gpu`
                yield (
                    _PARTS[part],
                    _part_title(name),
                    _text(name, value),
                    _gap(why.get(f"{part}.{name}")),
                )
    for name, version in (machine.get("versions") or {}).items():
        yield "Versions", words.plain(name), words.plain(version), ""


def _gap(reason: str | None) -> str:
    return f"{words.NOT_HERE} {reason}" if reason else _NOT_READABLE


def _group(name: str) -> str:
    low = name.lower()
    return next((group for group, stems in _WORDS if any(s in low for s in stems)), "More")


def _part_title(name: str) -> str:
    stem = next(
        (name.removesuffix(end) for end in ("_mhz", "_w", "_bytes") if name.endswith(end)), name
    )
    text = title_text(stem)
    for small, large in (
        ("Sm ", "SM "),
        ("Sm", "SM"),
        ("Cuda", "CUDA"),
        ("Mig", "MIG"),
        ("Ecc", "ECC"),
    ):
        if text.startswith(small):
            return large + text[len(small) :]
    return text


def _text(name: str, value: Any) -> str | None:
    if value is None or value in ("", [], {}):
        return None
    if name == "load" and isinstance(value, Mapping):
        figures = ", ".join(words.significant(v, 3) for v in value.values())
        return f"{figures} ({', '.join(map(words.plain, value))} minutes)"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for end, print_ in _UNITS:
            if str(name).endswith(end):
                return print_(value)
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value_text(value)


def state_columns(
    states: Sequence[Mapping[str, Any]], nulls: Mapping[str, Any] | None = None
) -> tuple[list[str], list[list[str]], list[Row]]:
    """Return what moved on the machine, a row for each look at it.

    Args:
        states: MachineStates as plain values, in the order of the restarts.
        nulls: field -> why it is not readable.

    Returns:
        titles of the columns that hold a figure; their rows; ``(titles, reason)`` of those that hold none.
    """
    nulls = nulls or {}
    keys = [k for k in _STATES if any(s.get(k) is not None for s in states)]
    rows = [
        [words.NOT_HERE if s.get(k) is None else _STATES[k][1](s[k]) for k in keys] for s in states
    ]
    missing: dict[str, list[str]] = {}
    for key, (title, _) in _STATES.items():
        if key not in keys:
            missing.setdefault(words.plain(_reason(key, nulls)), []).append(title)
    return (
        [_STATES[k][0] for k in keys],
        rows,
        [(", ".join(titles), why) for why, titles in missing.items()],
    )


def _reason(key: str, nulls: Mapping[str, Any]) -> str:
    """Return why a state is missing; a GPU's clock for want of a GPU, stops of a quota for want of a quota."""
    others = {"gpu_mhz": "gpu", "quota_stops": "cpu_quota_cores"}
    names = (f"states.{key}", key, others.get(key, key))
    return next((str(nulls[k]) for k in names if k in nulls), _NOT_READABLE)
