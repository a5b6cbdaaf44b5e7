"""The errors of mint-deploy, drawn as a tree.

    MintDeployError              the user can mend it: the message is shown alone, exit code 2
    ├── UnknownName              a name that is no file in its folder; carries the nearest known one
    ├── ConfigError              a flag or a key of mint.toml that makes no sense
    ├── TargetError              a target profile that does not hold together
    ├── ModelError               no such model, a factory that fails, weights that do not fit
    ├── DataError                data that is missing, mis-shaped, empty, one-class or NaN
    ├── TraceError               a model that the tracer cannot run or understand
    ├── PlanError                a budget out of reach, or a plan that belongs to another model
    ├── SurgeryError             a cut that the gate did not prove; nothing was kept of it
    ├── ExportMismatch           the exported file does not compute what the model computes
    ├── EngineMismatch           an engine built for something else than what is here
    ├── RuntimeMissing           an optional runtime is not installed; carries the command that mends it
    ├── RunFolderError           not a run folder, other settings, or in use
    └── RemoteError              a board that does not answer as expected
    PromiseBroken                the work is done and a promise does not hold: exit code 1
    Interrupted                  stopped by the user; what was done is kept: exit code 130
    InternalError                a broken invariant, our bug: traceback, exit code 70

A message says what happened with the value, what was expected, and what to do.
Standard library only: this file travels to the board.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "DataError",
    "EngineMismatch",
    "ExportMismatch",
    "InternalError",
    "Interrupted",
    "MintDeployError",
    "ModelError",
    "PlanError",
    "PromiseBroken",
    "RemoteError",
    "RunFolderError",
    "RuntimeMissing",
    "SurgeryError",
    "TargetError",
    "TraceError",
    "UnknownName",
]


class MintDeployError(Exception):
    """Something the user can mend; the command line prints the message alone and exits with 2."""

    exit_code = 2


class UnknownName(MintDeployError):
    """A name on the command line that is not a file in its folder.

    >>> str(UnknownName("runtime", "tensort", ["null", "tensorrt"]))
    "no runtime named 'tensort'; did you mean 'tensorrt'? known: null, tensorrt"
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = get_close_matches(name, self.known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ";"
        super().__init__(f"no {kind} named '{name}'{hint} known: {', '.join(self.known)}")


class ConfigError(MintDeployError):
    """A flag or a configuration key that makes no sense."""


class TargetError(MintDeployError):
    """A target profile that does not hold together."""


class ModelError(MintDeployError):
    """No such model, a factory that fails, or weights that do not fit it."""


class DataError(MintDeployError):
    """Data that is missing, mis-shaped, empty, one-class or not a number."""


class TraceError(MintDeployError):
    """A model that the tracer cannot run or understand."""


class PlanError(MintDeployError):
    """A budget out of reach, or a plan that belongs to another model.

    ``nearest`` is the nearest reachable fraction of the budget's quantity (or None), and
    ``held_by`` names what holds it back.
    """

    def __init__(
        self, message: str, *, nearest: float | None = None, held_by: Iterable[str] = ()
    ) -> None:
        self.nearest, self.held_by = nearest, tuple(held_by)
        super().__init__(message)


class SurgeryError(MintDeployError):
    """A cut that the gate did not prove equal; nothing of it was kept."""


class ExportMismatch(MintDeployError):
    """The exported file does not compute what the model computes."""

    def __init__(self, tensor: str, error: float, tolerance: float, *, advice: str = "") -> None:
        self.tensor, self.error, self.tolerance = tensor, error, tolerance
        tail = f"; {advice}" if advice else ""
        super().__init__(
            f"output '{tensor}' of the exported model differs from PyTorch by {error:.3g} "
            f"relative, at most {tolerance:.3g} was expected{tail}"
        )


class EngineMismatch(MintDeployError):
    """An engine built for something else than what is here."""

    def __init__(self, field: str, built_for: object, found: object, *, advice: str = "") -> None:
        self.field, self.built_for, self.found = field, built_for, found
        tail = f"; {advice}" if advice else ""
        super().__init__(f"engine built for {field} {built_for!r}, found {found!r}{tail}")


class RuntimeMissing(MintDeployError):
    """An optional runtime is not installed; ``mend`` is the one command that installs it."""

    def __init__(self, runtime: str, why: str, mend: str) -> None:
        self.runtime, self.why, self.mend = runtime, why, mend
        super().__init__(f"runtime '{runtime}' cannot be used here: {why}; to mend it: {mend}")


class RunFolderError(MintDeployError):
    """A folder that is not a run folder, holds other settings, or is in use."""


class RemoteError(MintDeployError):
    """A board that does not answer as expected."""


class PromiseBroken(Exception):
    """The work is done and kept, and a promise about it does not hold."""

    exit_code = 1


class Interrupted(Exception):
    """Stopped by the user; what was finished is kept and ``--resume`` takes it up."""

    exit_code = 130


class InternalError(Exception):
    """A broken invariant: our bug, shown with its traceback."""

    exit_code = 70
