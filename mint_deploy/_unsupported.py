"""Which node a runtime means when it says that it lacks an operator.

Each says it in words of its own and most name the operator alone; the node is looked up in the
file. Standard library only.
"""

from __future__ import annotations

import os
import re

from mint_deploy.errors import ModelError
from mint_deploy.onnx_wire import read_wire

__all__ = ["first_line", "unsupported"]

#: ONNX Runtime's and OpenVINO's words; the group is an operator, with or without its domain
_SAID = (
    re.compile(r"No Op registered for (\w+) with"),
    re.compile(r"Fatal error: ([\w.]+(?::\w+)?)\(-?\d+\) is not a registered"),
    re.compile(r"Could not find an implementation for (\w+)\(\d+\)"),
    re.compile(r"No conversion rule found for operations: (.+)"),
    re.compile(r"Conversion is failed for: (.+)"),
)
_SHOWN = 5
#: ONNX Runtime's status, and the function in its source
_SOURCE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])"
)
#: lines that say where in the library's source it stopped, and not why
_NOISE = ("Exception from ", "Check '", "FrontEnd API failed", "Summary:", "Model wasn't fully")


def unsupported(path: str | os.PathLike[str], reason: str) -> str:
    """Return the nodes that ``reason`` says cannot be run, in words; empty: it says something else."""
    said = {
        re.sub(r"-\d+$", "", word.strip()).replace(":", ".")
        for pattern in _SAID
        for match in pattern.finditer(reason)
        for word in match[1].split(",")
    }
    if not said:
        return ""
    try:
        nodes = read_wire(path).nodes
    except ModelError:
        return ", ".join(sorted(said))
    found = [n for n in nodes if {n.op_type, f"{n.domain}.{n.op_type}"} & said]
    named = [n for n in found if n.name and f"node with name '{n.name}'" in reason] or found
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return (", ".join(str(n) for n in named[:_SHOWN]) + more) or ", ".join(sorted(said))


def first_line(said: object) -> str:
    """Return the first line of a library's message that says something, without where in its source."""
    lines = [_SOURCE.sub("", line).strip() for line in str(said).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_NOISE)]
    return (telling or [line for line in lines if line] or [type(said).__name__])[0]
