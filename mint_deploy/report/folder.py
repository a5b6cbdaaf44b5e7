"""A run folder as the report reads it: every file may be absent, and a damaged one is named.

Standard library and the base only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from mint_deploy import files
from mint_deploy.artifacts import Measurement, PruningPlan
from mint_deploy.errors import MintDeployError, RunFolderError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FILES", "UNREADABLE", "Folder", "absent", "section"]

#: what reading a file of another version, or one edited by hand, may raise
UNREADABLE = (MintDeployError, AttributeError, KeyError, TypeError, ValueError)

#: what may lie in a run folder; a folder with none of them is not one
FILES = (
    "run.json",
    "target.toml",
    "moments.npz",
    "scores.npz",
    "plan.json",
    "cut.json",
    "overview.json",
    "accuracy.json",
    "deploy.json",
    "measurements.jsonl",
    "comparison.json",
    "predicted.json",
)


def absent(stage: str) -> dict[str, Any]:
    """Return the section of a ``stage`` that has not run yet."""
    return {"done": False, "note": "not done yet", "stage": stage}


def section(stage: str, build: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Return what ``build`` makes with ``done: true``, or why the section is empty.

    A file of another version, or edited by hand, costs its own section and not the report.
    """
    try:
        made = build()
    except MintDeployError as problem:
        return {"done": False, "note": str(problem), "stage": stage, "damaged": True}
    except UNREADABLE as problem:
        note = (
            f"the files of this stage do not hold what this version expects "
            f"({type(problem).__name__}: {problem}); run the stage again"
        )
        return {"done": False, "note": note, "stage": stage, "damaged": True}
    return absent(stage) if made is None else {"done": True, **made}


class Folder:
    """The files of one run folder, read once each.

    Raises:
        RunFolderError: no such folder, or nothing of a run is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[str, Any] = {}
        if not path.is_dir():
            raise RunFolderError(
                f"no run folder at {path}; expected a folder that `mint-deploy compress --out` "
                "or `mint-deploy score --out` wrote"
            )
        if not any((path / name).exists() for name in FILES):
            raise RunFolderError(
                f"{path} is not a run folder: it holds none of {', '.join(FILES[:5])}, …; "
                "name the folder that was given to --out"
            )

    def has(self, name: str) -> bool:
        """Return whether a file or folder of that name is there."""
        return (self.path / name).exists()

    def json(self, name: str, kind: str) -> dict[str, Any] | None:
        """Return a JSON object of ``kind``, or None where the file is absent.

        Raises:
            DataError: damaged, of another kind, or of a newer schema.
        """
        if not self.has(name):
            return None
        if name not in self._read:
            self._read[name] = files.read_json(self.path / name, kind=kind)
        return cast(dict[str, Any], self._read[name])

    def run(self) -> Mapping[str, Any]:
        """Return the keys of run.json (a RunManifest); an absent or damaged one is empty."""
        try:
            found = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def target(self) -> Mapping[str, Any]:
        """Return target.toml as plain keys; an absent or damaged one is empty."""
        try:
            return tomllib.loads((self.path / "target.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def plan(self) -> PruningPlan | None:
        """Return plan.json, or None where it is absent."""
        if not self.has("plan.json"):
            return None
        if "plan.json" not in self._read:
            self._read["plan.json"] = files.read_value(self.path / "plan.json", PruningPlan)
        return cast(PruningPlan, self._read["plan.json"])

    def measurements(self) -> tuple[list[Measurement], int]:
        """Return the measurements, and how many lines could not be read (a killed run's last)."""
        if not self.has("measurements.jsonl"):
            return [], 0
        if "measurements.jsonl" in self._read:
            return cast(tuple[list[Measurement], int], self._read["measurements.jsonl"])
        text = (self.path / "measurements.jsonl").read_text(encoding="utf-8", errors="replace")
        lines = [_measurement(line) for line in text.split("\n") if line.strip()]
        good = [m for m in lines if m is not None]
        self._read["measurements.jsonl"] = good, len(lines) - len(good)
        return good, len(lines) - len(good)


def _measurement(line: str) -> Measurement | None:
    try:
        data = json.loads(line)
        head = ("kind", "schema", "written_by")
        return files.decode(Measurement, {k: v for k, v in data.items() if k not in head})
    except UNREADABLE:
        return None
