"""The settings of a run: one frozen value, made of flags over a config file over defaults.

A config is ``mint.toml``, or ``[tool.mint-deploy]`` in ``pyproject.toml``, in the current folder;
its keys are the long flags without their dashes (``macs = 0.5``, ``max-accuracy-drop = 1``).
Relative paths count from the current folder, as they do for flags. Standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mint_deploy.errors import ConfigError

__all__ = [
    "BUDGETS",
    "DEMO",
    "Request",
    "from_flags",
    "names_python",
    "parse_floats",
    "parse_input",
    "read_config",
]

#: the network that is trained on the spot when no model is named
DEMO = "resnet8-digits"
BUDGETS = ("ratio", "params", "macs")
#: what decides what stays, unless a plan is given, which decides it all
CHOICES = (*BUDGETS, "ignore", "round_to")
DEFAULT_BUDGET = ("macs", 0.5)
RECOVERIES = ("none", "bn", "refit", "train")
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATIONS = ("minmax", "percentile", "entropy")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run is asked for. Every field is also a flag and a key of ``mint.toml``.

    ``params`` and ``macs`` are the fractions that stay, ``ratio`` the fraction of units that goes;
    ``plan`` is a file that says itself what stays. ``export_level`` cuts the program that ``torch.export``
    makes of the model, whose numbers can be rewritten, instead of its modules. ``attention``: whole ``heads``
    leave, or the ``width`` of every head. ``lossless``: units that do
    nothing leave first, whatever the budget. ``precision`` None is the target's; ``int8_max_drop`` are the points
    that lower precision may cost. ``input`` includes the batch. ``workers`` is the number of CPU threads that
    PyTorch uses; it is part of the settings because sums in another order give other last digits.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    input: tuple[int, ...] | None = None
    export_level: bool = False
    attention: str = "heads"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    loss: str | None = None
    metric: str | None = None
    target: str = "cpu"
    power_mode: str | None = None
    ratio: float | None = None
    params: float | None = None
    macs: float | None = None
    plan: str | None = None
    max_accuracy_drop: float | None = None
    criterion: str = "mint"
    estimator: str | None = None
    images: int = 1000
    ignore: tuple[str, ...] = ()
    round_to: int | None = None
    lossless: bool = True
    recover: str = "train"
    epochs: float | None = None
    lr: float | None = None
    distill: bool = True
    precision: str | None = None
    int8_max_drop: float = 0.5
    calibration: str = "minmax"
    pt2: bool = False
    seed: int = 0
    workers: int | None = None
    device: str = "cpu"
    out: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"{' and '.join('--' + n for n in given)} are two budgets; give one of "
                f"{', '.join('--' + n for n in BUDGETS)}"
            )
        told = [name for name in CHOICES if getattr(self, name) not in (None, ())]
        if self.plan is not None and told:
            raise ConfigError(
                f"--plan {self.plan} says itself what stays; leave {' and '.join(map(flag, told))} out"
            )
        for name, (holds, expected) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ConfigError(f"{flag(name)} is {_show(value)}, expected {expected}")

    @property
    def budget(self) -> tuple[str, float]:
        """The one budget: its name and value (``macs``, 0.5 where none was given)."""
        for name in BUDGETS:
            value = getattr(self, name)
            if value is not None:
                return name, float(value)
        return DEFAULT_BUDGET

    @property
    def demo(self) -> bool:
        """Whether no model was named, so the embedded demo is meant."""
        return self.model is None

    @property
    def model_name(self) -> str:
        """A short name that can be part of a path: ``net.py:make`` becomes ``net-make``."""
        spec = self.model or DEMO
        place, _, name = spec.partition(":")
        stem = Path(place).stem if place.endswith(".py") else place
        return _slug(f"{stem}-{name}" if name else stem)

    @property
    def folder(self) -> Path:
        """Where the run lives: ``out``, or ``runs/<model>-<target>``."""
        target = Path(self.target).stem if self.target.endswith(".toml") else self.target
        return Path(self.out) if self.out else Path("runs") / f"{self.model_name}-{_slug(target)}"

    def settings(self) -> dict[str, Any]:
        """Return what decides the result: every field but where the run lives."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "out"}


def _between(low: float, high: float) -> tuple[Any, str]:
    return lambda v: low < v <= high, f"a number above {low:g} and at most {high:g}"


def _positive(what: str) -> tuple[Any, str]:
    return lambda v: v > 0, f"a positive {what}"


def _one_of(names: tuple[str, ...]) -> tuple[Any, str]:
    return lambda v: v in names, f"one of {', '.join(names)}"


_RULES: dict[str, tuple[Any, str]] = {
    "ratio": (lambda v: 0 <= v < 1, "a number from 0 to below 1: the fraction of units to remove"),
    "params": _between(0, 1),
    "macs": _between(0, 1),
    "max_accuracy_drop": (lambda v: 0 <= v <= 100, "points of accuracy from 0 to 100"),
    "int8_max_drop": (lambda v: 0 <= v <= 100, "points of accuracy from 0 to 100"),
    "precision": _one_of(PRECISIONS),
    "calibration": _one_of(CALIBRATIONS),
    "images": _positive("whole number"),
    "round_to": _positive("whole number"),
    "epochs": _positive("number"),
    "lr": _positive("number"),
    "resize": _positive("whole number"),
    "workers": _positive("whole number"),
    "seed": (lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    "recover": _one_of(RECOVERIES),
    "device": _one_of(DEVICES),
    "attention": _one_of(("heads", "width")),
    "input": (
        lambda v: len(v) >= 2 and all(n > 0 for n in v),
        "positive sizes, the batch first, such as 1x3x32x32",
    ),
    "std": (lambda v: v and all(s > 0 for s in v), "positive numbers, one a channel"),
}


def flag(name: str) -> str:
    """Return the flag of a field: ``max_accuracy_drop`` becomes ``--max-accuracy-drop``."""
    return name.upper() if name == "model" else "--" + name.replace("_", "-")


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, (str, tuple)) else f"{value}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


# ---------------------------------------------------------------- reading


def parse_input(text: str) -> tuple[int, ...]:
    """``1x3x32x32`` -> ``(1, 3, 32, 32)``.

    Raises:
        ConfigError: not numbers joined by x.
    """
    if not re.fullmatch(r"\d+(x\d+)+", text):
        raise ConfigError(f"--input is '{text}', expected sizes such as 1x3x32x32, the batch first")
    return tuple(int(n) for n in text.split("x"))


def parse_floats(name: str, text: str) -> tuple[float, ...]:
    """``0.5,0.5`` -> ``(0.5, 0.5)``.

    Raises:
        ConfigError: not numbers between commas.
    """
    try:
        return tuple(float(n) for n in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag(name)} is '{text}', expected numbers such as 0.5,0.5") from None


def read_config(path: Path | None = None) -> tuple[Path | None, dict[str, Any]]:
    """Read a config file: ``path``, or the one in the current folder.

    Returns:
        The file and its keys as field names; ``(None, {})`` where there is none.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key, or a value of the wrong type.
    """
    if path is not None:
        body = _toml(path)
        if path.name == "pyproject.toml":
            body = _table(body)
        return path, _fields(path, body)
    if Path("mint.toml").is_file():
        return Path("mint.toml"), _fields(Path("mint.toml"), _toml(Path("mint.toml")))
    project = Path("pyproject.toml")
    if project.is_file():
        body = _toml(project)
        if "mint-deploy" in body.get("tool", {}):
            return project, _fields(project, _table(body))
    return None, {}


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _table(body: dict[str, Any]) -> dict[str, Any]:
    table = body.get("tool", {}).get("mint-deploy", {})
    if not isinstance(table, dict):
        raise ConfigError("[tool.mint-deploy] in pyproject.toml must be a table")
    return table


#: field -> what its value in TOML must be (bool is no number here)
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}


def _fields(path: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name: str(f.type) for f in fields(Request)}
    out: dict[str, Any] = {}
    for key, value in body.items():
        name = key.replace("-", "_")
        if name not in known:
            names = sorted(n.replace("_", "-") for n in known)
            near = get_close_matches(key, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ";"
            raise ConfigError(f"{path} has an unknown key '{key}'{hint} known: {', '.join(names)}")
        out[name] = _value(f"{path}: {key}", name, known[name].removesuffix(" | None"), value)
    return out


def _value(where: str, name: str, kind: str, value: Any) -> Any:
    if name == "input" and isinstance(value, str):
        return parse_input(value)
    if kind.startswith("tuple["):
        entry = kind.removeprefix("tuple[").split(",")[0]
        if isinstance(value, str) and entry == "str":
            value = [value]
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        return tuple(_value(where, "", entry, v) for v in value)
    types, expected = _KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"{where} is {value!r}, expected {expected}")
    return float(str(value)) if kind == "float" else value


def from_flags(flags: Mapping[str, Any], config: Mapping[str, Any]) -> Request:
    """Put flags (``None``: not given) over a config's keys over the defaults.

    A budget among the flags replaces the config's, whichever budget that was, and so does a plan.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    gives_way = _gives_way(given)
    base = {name: value for name, value in config.items() if name not in gives_way}
    return Request(**{**base, **given})


def _gives_way(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings that those given now replace: a budget another one, a plan all choices."""
    if "plan" in given:
        return CHOICES
    out: tuple[str, ...] = (
        ("plan",) if any(given.get(name) not in (None, ()) for name in CHOICES) else ()
    )
    return (*out, *BUDGETS) if any(name in given for name in BUDGETS) else out


def restore(settings: Mapping[str, Any], out: Path, changes: Mapping[str, Any]) -> Request:
    """Build the request of an existing run again, with the flags given now over it.

    Raises:
        ConfigError: the run was made by a version with other settings.
    """
    known = {f.name: f for f in fields(Request)}
    missing = [n for n, f in known.items() if n not in settings and f.default is MISSING]
    unknown = sorted(set(settings) - set(known))
    if missing or unknown:
        raise ConfigError(
            f"{out} was made by another version: setting '{[*missing, *unknown][0]}' is not known"
        )
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
    }
    given = {name: value for name, value in changes.items() if value is not None}
    kept = {name: value for name, value in values.items() if name not in _gives_way(given)}
    return Request(**{**kept, **given, "out": str(out)})


def names_python(request: Request) -> list[str]:
    """Return what the request would import or run: ``file.py:name`` or ``package.module:name``."""
    signs = {"model": ":", "data": ".py:", "loss": ":", "metric": ":"}
    specs = [(getattr(request, name) or "", sign) for name, sign in signs.items()]
    return [spec for spec, sign in specs if sign in spec]
