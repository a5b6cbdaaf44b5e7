"""Where in the user's code a step of an exported program comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import FrameType

    from torch.fx import Node

__all__ = ["Place", "place_of", "told"]

_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True, slots=True)
class Place:
    """The module (its path) and the line (``file.py:12``) of the user's code."""

    module: str
    line: str


def told(frame: FrameType | None) -> Place | None:
    """Return what a running program says of the place it is at, in a local variable ``place``."""
    while frame is not None:
        place = frame.f_locals.get("place") if "place" in frame.f_code.co_varnames else None
        if isinstance(place, Place):
            return place
        frame = frame.f_back
    return None


def place_of(node: Node) -> Place:
    """Return the module and the line of the user's code that a node comes from."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    module = next((str(path) for path, *_ in reversed(list(stack.values()))), "")
    line = ""
    for entry in str(node.meta.get("stack_trace") or "").splitlines():
        text = entry.strip()
        if text.startswith('File "') and _TORCH not in text:
            path, _, rest = text.removeprefix('File "').partition('", line ')
            line = f"{Path(path).name}:{rest.partition(',')[0]}"
    return Place(module.partition("@")[0], line)
