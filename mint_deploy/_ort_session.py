"""A session of ONNX Runtime from written-down flags, and where it put each node.

What cannot run on the provider that was asked for runs on another one without a word, and the
figure is then not the provider's. So after a session is made its assignment of every node is read
(ONNX Runtime 1.24 and newer tell; before, the profiler does), and the library's own habit of
starting over on the CPU is off.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mint_deploy import _ort_cache, _ort_providers
from mint_deploy._unsupported import first_line, unsupported
from mint_deploy.artifacts import Engine
from mint_deploy.errors import ConfigError, MintDeployError, ModelError, RuntimeMissing
from mint_deploy.runtimes import Arrays

__all__ = ["GRAPH_LEVELS", "OPTION", "fallback", "open_session", "placement", "profile"]

#: our names for the levels of graph optimisation
GRAPH_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
#: what stands before a provider's own option among the flags
OPTION = "option."
#: flags that decide what an optimised model is
_DECIDING = ("provider", "graph_optimization")
#: nodes that a flag names
_SHOWN = 8


def _session_options(flags: Mapping[str, str], *, level: str | None = None) -> Any:
    library = _ort_providers.library()
    options = library.SessionOptions()
    options.intra_op_num_threads = int(flags["intra_op_threads"])
    options.inter_op_num_threads = int(flags["inter_op_threads"])
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(
        library.GraphOptimizationLevel, GRAPH_LEVELS[level or flags["graph_optimization"]]
    )
    options.enable_cpu_mem_arena = flags["memory_arena"] == "on"
    options.enable_mem_pattern = flags["memory_pattern"] == "on"
    options.log_severity_level = 4  # errors come as exceptions
    spin = "1" if flags["spinning"] == "on" else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    options.add_session_config_entry("session.inter_op.allow_spinning", spin)
    if flags["provider"] != _ort_providers.CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if flags["on_fallback"] == "refuse":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _made(engine: Engine, options: Any, path: str | None = None) -> Any:
    """Make a session of ``path`` (the engine's own file where absent), with nothing left unsaid."""
    library, flags = _ort_providers.library(), engine.flags
    provider, path = flags["provider"], path or engine.path
    wishes = {k.removeprefix(OPTION): v for k, v in flags.items() if k.startswith(OPTION)}
    if provider in (_ort_providers.CUDA, _ort_providers.TENSORRT):
        preload = getattr(library, "preload_dlls", None)  # finds CUDA among the pip packages
        if preload is not None:
            with contextlib.redirect_stdout(None):
                preload()
    refuse = flags.get("on_fallback") == "refuse"
    chain = _ort_providers.chain(provider, wishes, refuse=refuse)
    try:
        session = library.InferenceSession(
            path, sess_options=options, providers=chain, enable_fallback=0
        )
    except Exception as error:
        raise _refused(engine, path, error) from error
    if session.get_providers()[0] != provider:
        raise RuntimeMissing(
            engine.runtime,
            f"{provider} does not start and it fell back to {session.get_providers()[0]}",
            f"{_ort_providers.mend(provider)} (and check the driver, CUDA and cuDNN)",
        )
    return session


def _refused(engine: Engine, path: str, error: Exception) -> MintDeployError:
    """Return the error for a file or flags that ONNX Runtime does not take."""
    said, provider = str(error), engine.flags["provider"]
    name = f"ONNX Runtime {_ort_providers.library().__version__}"
    if "fallback to CPU EP has been explicitly disabled" in said:
        return ModelError(
            f"some nodes of {path} cannot run on {provider}, and falling back to the CPU is "
            "refused; see which: on_fallback='report'"
        )
    if "provider option" in said.lower():
        return ConfigError(f"{name} refuses an option of {provider}: {first_line(said)}")
    nodes = unsupported(path, said)
    if nodes:
        return ModelError(
            f"{name} has no operator for {nodes}, in {path}; rewrite that layer, or choose "
            "another runtime"
        )
    return ModelError(f"{name} cannot load {path}: {first_line(said)}; export it anew")


def open_session(engine: Engine, digest: str, folder: Path | None) -> tuple[Any, bool]:
    """Make the session that ``engine.flags`` describe.

    Args:
        engine: its flags are complete.
        digest: of the model.
        folder: of optimised models; None: none are kept.

    Returns:
        The session, and whether it was loaded from an optimised model.

    Raises:
        ModelError: a file that ONNX Runtime refuses, with its reason; an operator is named with its
            node.
        RuntimeMissing: the provider does not start.
    """
    flags = engine.flags
    if folder is None or flags["provider"] == _ort_providers.TENSORRT:
        return _made(engine, _session_options(flags)), False  # TensorRT keeps engines of its own
    deciding = {k: v for k, v in flags.items() if k in _DECIDING or k.startswith(OPTION)}
    version, machine = str(_ort_providers.library().__version__), _ort_cache.processor()
    key = _ort_cache.entry_key(digest, version, deciding, machine)
    ready = _ort_cache.find(folder, key)
    if ready is not None:
        with contextlib.suppress(ModelError):  # then it is made anew, below
            return _made(engine, _session_options(flags, level="none"), str(ready)), True
    made: list[Any] = []

    def write(part: Path) -> None:
        options = _session_options(flags)
        options.optimized_model_filepath = str(part)
        made.append(_made(engine, options))

    try:
        _ort_cache.keep(folder, key, write)
    except OSError:  # a folder that cannot be written keeps nobody from running
        if not made:
            made.append(_made(engine, _session_options(flags)))
    return made[0], False


def placement(session: Any) -> dict[str, tuple[str, ...]] | None:
    """Return provider -> its nodes, ``name (operator)``; None where this ONNX Runtime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    found: dict[str, list[str]] = {}
    for part in tell():
        for node in part.get_nodes():
            label = f"{node.name or 'no name'} ({node.op_type})"
            found.setdefault(str(part.ep_name), []).append(label)
    return {provider: tuple(nodes) for provider, nodes in sorted(found.items())}


def fallback(provider: str, found: Mapping[str, tuple[str, ...]]) -> str:
    """Say in one line what runs elsewhere than on ``provider``; ``none`` where nothing does."""
    total = sum(map(len, found.values()))
    said = []
    for other, nodes in found.items():
        if other != provider:
            more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
            names = ", ".join(nodes[:_SHOWN]) + more
            said.append(f"{len(nodes)} of {total} nodes on {other}: {names}")
    return "; ".join(said) or "none"


def profile(engine: Engine, inputs: Arrays, calls: int) -> list[tuple[str, str, str, float]]:
    """Run a session of its own with the profiler on.

    Returns:
        Name, operator, provider and median nanoseconds (counted in whole microseconds) of each node
        that ran, in the order of execution.
    """
    found: dict[str, tuple[str, str, list[int]]] = {}
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        options = _session_options(engine.flags)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = _made(engine, options)
        for _ in range(calls):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            told = event.get("args", {})
            row = found.setdefault(
                name.removesuffix("_kernel_time"),
                (str(told.get("op_name", "")), str(told.get("provider", "")), []),
            )
            row[2].append(int(event["dur"]))
    return [(name, op, where, median(us) * 1e3) for name, (op, where, us) in found.items()]
