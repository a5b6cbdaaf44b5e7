"""The two sides of ``compare``: a run folder or a file, or one label of either, as ``base.jsonl#dense``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint_deploy.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mint_deploy.artifacts import Measurement

__all__ = ["Side", "accuracy_drop", "open_side"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What was named on the command line, and what is in it."""

    given: str
    path: Path
    measured: Sequence[Measurement]


def open_side(given: str) -> Side:
    """Read ``PATH`` or ``PATH#LABEL``.

    Args:
        given: a run folder, or a file of ``bench --save-baseline``; a file that has a ``#`` in its
            name is taken as it is.

    Raises:
        DataError: missing, damaged, or without that label.
    """
    from mint_deploy.measurement_file import read
    from mint_deploy.pairing import labelled

    path, label = Path(given), ""
    if not path.exists() and "#" in given:
        name, _, label = given.rpartition("#")
        path = Path(name)
    measured = read(path)
    if label:
        measured = labelled(measured, label, where=str(path))
    if path.is_dir():
        measured = _with_sizes(path, measured)
    return Side(given=given, path=path, measured=measured)


def _with_sizes(run: Path, measured: Sequence[Measurement]) -> list[Measurement]:
    """Measurements of a run folder with the size of their file, where only deploy.json knows it."""
    if not (run / "deploy.json").exists():
        return list(measured)
    from mint_deploy.files import read_json

    deploy = read_json(run / "deploy.json", kind="Deploy")
    out = []
    for m in measured:
        exported = deploy.get(m.task.label)
        size = exported.get("bytes") if isinstance(exported, Mapping) else None
        if isinstance(size, int) and "file_bytes" not in {**m.figures, **m.nulls}:
            m = dataclasses.replace(m, figures={**m.figures, "file_bytes": float(size)})
        out.append(m)
    return out


# ---------------------------------------------------------------- accuracy


def accuracy_drop(baseline: Side, now: Side) -> float:
    """Return how many points the slim network of ``now`` is less accurate than that of ``baseline``.

    On the test part where both were judged there, else on validation.

    Raises:
        DataError: a side is no run folder, or its network was not judged.
        ConfigError: they were judged by different measures, or on different samples.
    """
    first, second = _judged(baseline), _judged(now)
    part = next(
        (p for p in ("test", "validation") if first.get(p) and second.get(p)),
        None,
    )
    if part is None:
        raise DataError(
            f"{baseline.path} and {now.path} were not judged on the same part of the data; "
            "finish both runs"
        )
    a, b = first[part], second[part]
    for name in ("measure", "samples"):
        if a.get(name) != b.get(name):
            raise ConfigError(
                f"these accuracies are not of one task: {name} is {a.get(name)!r} and "
                f"{b.get(name)!r}; judge both on the same data"
            )
    return 100 * (float(a["top1"]) - float(b["top1"]))


def _judged(side: Side) -> Mapping[str, Any]:
    """The last step of the slim network."""
    from mint_deploy.files import read_json

    if not side.path.is_dir():
        raise DataError(
            f"{side.path} is no run folder, so there is no accuracy.json; compare two run folders"
        )
    path = side.path / "accuracy.json"
    steps = read_json(path, kind="AccuracySteps").get("steps") or []
    last = next((s for s in reversed(steps) if s["step"] not in ("dense", "control")), None)
    if not isinstance(last, Mapping):
        raise DataError(f"{path} has no step of the slim network yet; finish the run")
    return last
