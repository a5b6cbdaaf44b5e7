"""Keys and values of records (machines, settings, versions) as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy.report import words

__all__ = ["title_text", "value_text"]


def title_text(key: object) -> str:
    """Return a key as words: ``cpu_quota_cores`` -> ``Cpu quota cores``."""
    name = words.plain(key).replace("_", " ")
    return name[:1].upper() + name[1:]


def value_text(value: Any) -> str:
    """Return any plain value as one line; a mapping as ``key value, key value``, nothing as a dash."""
    if value is None or value in ("", [], {}):
        return words.NOT_HERE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{words.plain(k)} {value_text(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_text(v) for v in value)
    if isinstance(value, float):
        return words.plain(f"{value:g}")
    return words.plain(value)
