"""What TensorRT said, read: the operator that its parser lacks, memory that ran out, the wrong engine.

``trtexec`` and the logger of the Python API print the same lines; each pattern here is held against
a recorded log in the tests. Exports are JSON and parsed by :mod:`mint_deploy._trt_exports`; what
stands here is in the log alone. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from mint_deploy.errors import EngineMismatch, MintDeployError, ModelError
from mint_deploy.onnx_wire import WireNode

__all__ = ["Circumstances", "Refused", "explain", "fell_back", "refused_nodes", "wrong_engine"]

_WHILE = re.compile(r'While parsing node number (\d+) \[(\S+)(?: -> "([^"]*)")?\]')
_NODE_NAME = re.compile(r'^\s*name: "([^"]*)"')
_IN_NODE = re.compile(r"In node (-?\d+)(?: with name: (.*?) and operator: (\S+))? \((\w+)\): (.*)")
_NO_IMPORTER = re.compile(r"No importer registered for op: (\w+)")
_NO_PLUGIN = re.compile(r"Plugin not found|No importer registered|UNSUPPORTED_NODE")
_PARSER_SAYS = re.compile(r"ERROR: \S+ In function \w+:")

_GPU_REQUEST = re.compile(r"Requested amount of GPU memory \((\d+) bytes\) could not be allocated")
_MEMORY = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|OutOfMemory|std::bad_alloc|User allocator error"
    r"|NvMapMemAlloc\w* failed|Cannot allocate memory",
    re.IGNORECASE,
)
_OTHER_ENGINE = (
    re.compile(r"expecting library version (\S+) got ([\d.]*\d)"),
    re.compile(r"Current Version: (\d+), Serialized Engine Version: (\d+)"),
)
_OTHER_DEVICE = re.compile(
    r"incompatible device|Target GPU SM \S+ is not supported|[Cc]ompute capability \S+ (?:is )?not"
    r"|Platform \(.*\) of the engine|magicTag|plan file is not compatible|engine deserialization fail",
    re.IGNORECASE,
)
_NO_PROFILE = re.compile(
    r"dynamic or shape inputs, but no optimization profile|missing dimensions in profile"
    r"|Required optimization profile is invalid"
)
_STATIC = "Static model does not take explicit shapes"

#: layers that the accelerator does not run, as 8.5 and as 8.6 and later say it
_FALLBACKS = (
    re.compile(r"enabled but layer (.+?) is not (?:supported|running) on DLA, falling back to GPU"),
    re.compile(r"Layer '(.+?)' \(\w+\): Unsupported on DLA\. Switching"),
)
_RUNS_ON_GPU = re.compile(r"\[GpuLayer\] (?:[A-Z_0-9]+: )?(.+?)\s*$")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a failed build needs to be explained: ``memory_bytes`` and ``swap_bytes`` of the machine,
    ``nodes`` of the ONNX file (8.x names a node by its number alone).
    """

    version: str
    model: str
    memory_bytes: int = 0
    swap_bytes: int = 0
    workspace_mib: int | None = None
    nodes: Sequence[WireNode] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A node that the parser refused; ``unknown``: it lacks the operator altogether."""

    number: int
    operator: str
    name: str
    reason: str
    unknown: bool


def explain(log: str, code: int | None, about: Circumstances) -> MintDeployError:
    """Return the error of a build that failed: what happened, with numbers, and what to do.

    Args:
        log: all that was printed, ``[E]`` lines and the rest.
        code: the exit code of ``trtexec``, negative for a signal; None for the Python API.
        about: what was built, where.
    """
    head = f"TensorRT {about.version} could not build {about.model}"
    if refused := refused_nodes(log, about.nodes):
        return ModelError(f"{head}: {_about_nodes(refused)}")
    killed = code is not None and code in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if killed or _MEMORY.search(log) or _GPU_REQUEST.search(log):
        return MintDeployError(f"{head}: {_about_memory(log, killed, about)}")
    if _NO_PROFILE.search(log) or _STATIC in log:
        return ModelError(
            f"{head}: the shapes asked for do not fit its inputs ({_quote(log)}); fix them in the "
            "export, or leave the batch alone open"
        )
    how = "" if code is None else f" (exit code {code})"
    return MintDeployError(f"{head}{how}: {_quote(log)}")


def _quote(log: str) -> str:
    """The last words: three lines of errors where there are any."""
    lines = [re.sub(r"^\[[\d/:-]+\] ", "", line.strip()) for line in log.splitlines()]
    lines = [line for line in lines if line and not line.startswith("&&&&")]
    errors = [line for line in lines if line.startswith("[E]")]
    return " | ".join((errors or lines)[-3:]) or "it said nothing"


# ---------------------------------------------------------------- what the parser refused


def refused_nodes(log: str, nodes: Sequence[WireNode] = ()) -> list[Refused]:
    """Return the nodes that the ONNX parser refused, in its order, each once."""
    found: dict[int, Refused] = {}
    lines = log.splitlines()
    for at, line in enumerate(lines):
        if match := _WHILE.search(line):
            number, operator = int(match[1]), match[2]
            found.setdefault(number, _refused(lines[at + 1 :], number, operator, nodes))
        elif match := _IN_NODE.search(line):
            number = int(match[1])
            name, operator = match[2] or "", match[3] or ""
            if 0 <= number < len(nodes):
                name, operator = name or nodes[number].name, operator or nodes[number].op_type
            unknown = bool(_NO_PLUGIN.search(line)) or "FallbackPlugin" in match[4]
            found.setdefault(
                number,
                Refused(
                    number=number, operator=operator, name=name, reason=match[5].strip(),
                    unknown=unknown,
                ),
            )  # fmt: skip
    return [found[number] for number in sorted(found)]


def _refused(
    following: Sequence[str], number: int, operator: str, nodes: Sequence[WireNode]
) -> Refused:
    """Read the dump of a node after ``While parsing node number``: its name and the parser's words.

    The dump is the node as text; an attribute's name is indented, the node's own is not.
    """
    name, reason, depth = "", "", 0
    for at, line in enumerate(following):
        if _WHILE.search(line):
            break
        plain = re.sub(r"^.*--- Begin node ---|^\[[^\]]*\] ", "", line)
        if depth == 0 and not name and (match := _NODE_NAME.match(_unprefixed(plain))):
            name = match[1]
        depth = max(0, depth + plain.count("{") - plain.count("}"))
        if _PARSER_SAYS.search(line):
            reason = following[at + 1].strip() if at + 1 < len(following) else ""
            break
    if not name and 0 <= number < len(nodes):
        name = nodes[number].name
    unknown = bool(_NO_PLUGIN.search(reason))
    return Refused(number=number, operator=operator, name=name, reason=reason, unknown=unknown)


def _unprefixed(line: str) -> str:
    """8.x prints the first line of the dump behind ``ModelImporter.cpp:728:``."""
    return re.sub(r"^.*ModelImporter\.cpp:\d+: ", "", line)


def _about_nodes(refused: Sequence[Refused]) -> str:
    unknown = [r for r in refused if r.unknown]
    if unknown:
        listed = "; ".join(
            f"{r.operator or 'an operator'} (node {r.number}{f', {r.name!r}' if r.name else ''})"
            for r in unknown[:8]
        )
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        return (
            f"its ONNX parser has no {listed}{more}; replace the operator in the model, export at "
            "another opset, or build with a TensorRT that has it"
        )
    first = refused[0]
    return (
        f"its ONNX parser refused {first.operator} (node {first.number}, {first.name!r}): "
        f"{first.reason}; change that layer, or export at another opset"
    )


# ---------------------------------------------------------------- memory


def _about_memory(log: str, killed: bool, about: Circumstances) -> str:
    sizes = [int(size) for size in _GPU_REQUEST.findall(log)]
    largest = max(sizes, default=0)
    what = (
        "the system ended the builder for want of memory (signal 9)"
        if killed
        else f"memory ran out ({largest / _GIB:.1f} GiB were asked for at once)"
        if largest
        else "memory ran out"
    )
    scratch = about.workspace_mib
    has = f"this machine has {about.memory_bytes / _GIB:.1f} GiB" if about.memory_bytes else ""
    swap = f"{about.swap_bytes / _GIB:.1f} GiB of swap"
    limit = f"the builder might use {scratch} MiB of scratch memory" if scratch else (
        "the builder's scratch memory had no limit"
    )  # fmt: skip
    facts = "; ".join(part for part in (f"{has} and {swap}" if has else "", limit) if part)
    if about.memory_bytes and largest > about.memory_bytes:
        return (
            f"{what}; {facts}; one tensor alone is larger than the memory: build with a smaller "
            "input or batch"
        )
    smaller = max(64, (scratch or 1024) // 2)
    add = _swap_to_add(about)
    file = "/swapfile"
    commands = [
        ["sudo", "fallocate", "-l", f"{add}G", file], ["sudo", "chmod", "600", file],
        ["sudo", "mkswap", file], ["sudo", "swapon", file],
    ]  # fmt: skip
    return (
        f"{what}; {facts}; add {add} GiB of swap ({' && '.join(map(shlex.join, commands))}), stop "
        f"other programs and the desktop, or give the builder less (workspace_mib = {smaller})"
    )


def _swap_to_add(about: Circumstances) -> int:
    """Whole GiB: as much as the machine has memory, from 4 to 16, less the swap that is there."""
    wanted = min(16, max(4, -(-about.memory_bytes // _GIB)))
    return max(2, wanted - about.swap_bytes // _GIB)


# ---------------------------------------------------------------- engines, the accelerator


def wrong_engine(log: str, *, advice: str) -> MintDeployError:
    """Return the error of an engine that could not be loaded."""
    for pattern in _OTHER_ENGINE:
        if match := pattern.search(log):
            here, built = match[1].strip(",."), match[2].strip(",.")
            field = "TensorRT" if "." in here + built else "serialisation version"
            return EngineMismatch(field, built, here, advice=advice)
    if match := _OTHER_DEVICE.search(log):
        return EngineMismatch("another machine", match[0], "this one", advice=advice)
    return MintDeployError(f"TensorRT cannot load the engine: {_quote(log)}; {advice}")


def fell_back(log: str) -> list[str]:
    """Return the layers that were meant for the accelerator and run on the GPU, each once."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        for pattern in (*_FALLBACKS, _RUNS_ON_GPU):
            if match := pattern.search(line):
                found[match[1]] = None
    return list(found)
