"""The user's own code on the command line: ``package.module:name`` or ``path/to/file.py:name``.

Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mint_deploy.errors import MintDeployError

__all__ = ["call", "is_reference", "load_object"]

#: (path, time of change, size) -> the module, so that one file is run once
_FILES: dict[tuple[str, int, int], ModuleType] = {}
#: files that the user named, for the line in an error message
_OWN: set[str] = set()


def is_reference(spec: str) -> bool:
    """Tell whether ``spec`` is ``file.py:name`` (or lacks the name) or ``package.module:name``."""
    left, _, name = spec.rpartition(":")
    if spec.endswith(".py") or left.endswith(".py"):
        return True
    return bool(left) and name.isidentifier() and all(p.isidentifier() for p in left.split("."))


def load_object(spec: str, *, error: type[MintDeployError]) -> Any:
    """Import the module or file of ``spec`` and return the object it names.

    The file's folder (or the current folder, for a module) goes to the end of ``sys.path``, so that
    the user's code finds its neighbours and shadows nothing.

    Raises:
        error: no such file, module or name, or the code raises while it is imported.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        raise error(f"'{spec}' names no object in the file; write {spec}:NAME, a function in it")
    module = _from_file(place, error) if place.endswith(".py") else _from_name(place, error)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            public = sorted(n for n, v in vars(module).items() if n[:1] != "_" and callable(v))
            listing = ", ".join(public[:12]) or "nothing that can be called"
            raise error(f"{place} has no '{name}'; it defines: {listing}")
    return found


def call(function: Callable[..., Any], spec: str, *, error: type[MintDeployError]) -> Any:
    """Call the user's function without arguments.

    Raises:
        error: it raised; the message carries the reason and the line of the user's file.
    """
    try:
        return function()
    except (Exception, SystemExit) as reason:
        raise error(f"{spec} raised {describe(reason)}") from reason


def describe(reason: BaseException) -> str:
    """Return ``ValueError: text (file.py, line 7)``: the innermost line that is the user's own."""
    text = f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
    if isinstance(reason, SyntaxError):
        return text
    for frame in reversed(traceback.extract_tb(reason.__traceback__)):
        if frame.filename in _OWN:
            return f"{text} ({frame.filename}, line {frame.lineno})"
    return text


def _from_file(place: str, error: type[MintDeployError]) -> ModuleType:
    path = Path(place).expanduser()
    try:
        path = path.resolve(strict=True)
        state = path.stat()
    except OSError as reason:
        raise error(f"cannot read {place}: {reason.strerror}; check the path") from reason
    key = (str(path), state.st_mtime_ns, state.st_size)
    if key in _FILES:
        return _FILES[key]
    tag = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"_mint_deploy_user_{path.stem}_{tag}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"cannot import {place}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    _reach(path.parent)
    sys.modules[name] = module
    _FILES[key] = module
    _OWN.add(str(path))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as reason:
        message = f"{place} raised {describe(reason)} while it was imported"
        del sys.modules[name], _FILES[key]
        raise error(message) from reason
    return module


def _from_name(place: str, error: type[MintDeployError]) -> ModuleType:
    _reach(Path.cwd())
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as reason:
        hint = "install it, or run from the folder that holds it"
        raise error(f"cannot import '{place}': {reason}; {hint}") from reason
    except (Exception, SystemExit) as reason:
        raise error(f"'{place}' raised {describe(reason)} while it was imported") from reason
    _OWN.add(str(module.__file__))
    return module


def _reach(folder: Path) -> None:
    text = os.fspath(folder)
    if text not in sys.path:
        sys.path.append(text)
