"""Compress a neural network by channel pruning, prove the cut exact, deliver it and measure it.

    import mint_deploy as md
    result = md.compress(model, data, target="jetson", macs=0.5, out="run")

Importing this package is light: a name is imported when it is first used, with what it needs.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mint_deploy._version import __version__

if TYPE_CHECKING:  # for type checkers and editors; at run time __getattr__ does it
    from mint_deploy.artifacts import (
        Accuracy,
        Comparison,
        Engine,
        ExportedModel,
        Importance,
        Machine,
        Measurement,
        Moments,
        PruningPlan,
    )
    from mint_deploy.bench import measure
    from mint_deploy.compare import compare
    from mint_deploy.compose import compose
    from mint_deploy.criteria import score
    from mint_deploy.dependency import dependency
    from mint_deploy.errors import MintDeployError
    from mint_deploy.export import export
    from mint_deploy.loading import load
    from mint_deploy.lossless import remove_dead
    from mint_deploy.moments import sample
    from mint_deploy.pipeline import compress
    from mint_deploy.plan import plan
    from mint_deploy.program_export import export_program
    from mint_deploy.pt2 import save_pt2
    from mint_deploy.recover import recover
    from mint_deploy.repair import repair
    from mint_deploy.surgery import cut
    from mint_deploy.target import Target
    from mint_deploy.trace import trace
    from mint_deploy.verify import verify

__all__ = [
    "__version__",
    # the verbs, in the order of the work
    "trace",
    "sample",
    "score",
    "dependency",
    "plan",
    "cut",
    "remove_dead",
    "compose",
    "verify",
    "repair",
    "recover",
    "export",
    "save_pt2",
    "export_program",
    "measure",
    "compare",
    "compress",
    "load",
    # the values that flow between them
    "Accuracy",
    "Comparison",
    "Engine",
    "ExportedModel",
    "Importance",
    "Machine",
    "Measurement",
    "Moments",
    "PruningPlan",
    "Target",
    # what everything that the user can mend is raised as
    "MintDeployError",
]

#: public name -> the module of this package that has it (``artifacts`` where it is not named)
_WHERE = {
    "trace": "trace",
    "sample": "moments",
    "score": "criteria",
    "dependency": "dependency",
    "plan": "plan",
    "cut": "surgery",
    "remove_dead": "lossless",
    "compose": "compose",
    "verify": "verify",
    "repair": "repair",
    "recover": "recover",
    "export": "export",
    "save_pt2": "pt2",
    "export_program": "program_export",
    "measure": "bench",
    "compare": "compare",
    "compress": "pipeline",
    "load": "loading",
    "Target": "target",
    "MintDeployError": "errors",
}


class _Package(ModuleType):
    """This package as a module in which a verb wins over the sub-module of the same name.

    ``mint_deploy.plan`` is a module and a function. The import system would put the module into
    the attribute ``plan`` as soon as anybody imports it, and ``md.plan(...)`` would fail then.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mint_deploy' has no attribute '{name}'")
    module = importlib.import_module(f"mint_deploy.{_WHERE.get(name, 'artifacts')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
