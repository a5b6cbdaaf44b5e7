"""A name on the command line is a file in a folder.

``load("criterion", "mint")`` imports ``mint_deploy.criteria.mint``; a dotted name
(``my_package.my_module``) loads somebody else's module. Dropping a file in adds it.
Standard library only: this file travels to the board.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

from mint_deploy.errors import MintDeployError, UnknownName

__all__ = ["FOLDERS", "known", "load"]

#: kind -> the sub-package whose modules are its members
FOLDERS = {"criterion": "criteria", "estimator": "estimators", "runtime": "runtimes"}


def known(kind: str) -> list[str]:
    """Return the sorted names of ``kind`` (``criterion``, ``estimator`` or ``runtime``)."""
    package = importlib.import_module(f"mint_deploy.{FOLDERS[kind]}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Import the plug-in ``name`` of ``kind``.

    Raises:
        UnknownName: no such file in the folder; the nearest name is suggested.
        MintDeployError: a dotted name that cannot be imported, with the reason.
    """
    if "." in name:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise MintDeployError(f"cannot import {kind} '{name}': {error}") from error
    if name not in known(kind):
        raise UnknownName(kind, name, known(kind))
    return importlib.import_module(f"mint_deploy.{FOLDERS[kind]}.{name}")
