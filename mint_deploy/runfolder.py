"""The run folder: one exclusive holder, one manifest, and a record of what every stage read.

    run.json   RunManifest: settings, seed, command, versions, a StageRecord per finished stage
    .lock      held with ``flock`` for as long as the folder is open; names its holder

A stage is *fresh* when it finished, the files it read are still the ones it read, the settings it
depends on are unchanged, and the files it wrote are there. A file that was edited by hand is taken
as it is, and the stages that read it run anew. A folder that is not ours is never touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mint_deploy import files
from mint_deploy.errors import DataError, RunFolderError
from mint_deploy.folders import is_leftover, lock, now, remove, sweep

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = [
    "FILES",
    "MANIFEST",
    "RunFolder",
    "RunManifest",
    "StageRecord",
    "check_folder",
    "read_manifest",
]

MANIFEST = "run.json"

#: every name that mint-deploy writes into a run folder; nothing else is ever removed from one
FILES = (
    MANIFEST,
    "target.toml",
    "dense.safetensors",
    "moments.npz",
    "scores.npz",
    "plan.json",
    "cut.json",
    "overview.json",
    "accuracy.json",
    "slim.safetensors",
    "checkpoints",
    "dense.onnx",
    "model.onnx",
    "model.pt2",
    "dense.int8.onnx",
    "model.int8.onnx",
    "dense.fp16.onnx",
    "model.fp16.onnx",
    "precision.json",
    "calibration.json",
    "parity.npz",
    "deploy.json",
    "engine.json",
    "engine.plan",
    "timing.cache",
    "measurements.jsonl",
    "comparison.json",
    "predicted.json",
    "report.json",
    "report.md",
    "report.html",
    "bundle",
    "bundle.tar.gz",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A finished stage: SHA-256 of every file it read ("" where absent) and its settings."""

    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]
    seconds: float
    finished: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """What a run folder is: its settings, who started it with which versions, what is finished.

    ``facts`` are small things a stage found out and later stages need (input shape, class names).
    """

    settings: Mapping[str, Any]
    seed: int
    command: tuple[str, ...]
    versions: Mapping[str, str]
    created: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, StageRecord] = field(default_factory=dict)


class RunFolder:
    """An open run folder, held exclusively until it is closed (use it in a ``with``)."""

    def __init__(
        self,
        path: Path,
        manifest: RunManifest,
        handle: int,
        *,
        new: bool = False,
        made: Sequence[Path] = (),
    ) -> None:
        self.path, self.manifest = path, manifest
        self._handle, self._made, self._new = handle, tuple(made), new
        self._hashes: dict[tuple[str, int, int], str] = {}

    # ------------------------------------------------------------ opening and closing

    @classmethod
    def start(
        cls,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        seed: int,
        command: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        force: bool = False,
    ) -> RunFolder:
        """Open ``path`` as the run of exactly these settings, making it where there is none.

        Args:
            path: the folder; it may be missing or empty.
            settings: plain JSON values, compared key by key with those of an existing run.
            seed: recorded.
            command: recorded: how the run was started.
            versions: recorded: package name -> version.
            force: throw an existing run's own files away and begin anew.

        Raises:
            RunFolderError: not a run folder (also under ``force``), other settings, or in use.
        """
        folder = Path(path)
        settings = files.encode(dict(settings))
        _refuse_foreign(folder)
        made = [p for p in (folder, *folder.parents) if not p.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = lock(folder)
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be written: {error.strerror}; name another folder with --out"
            ) from error
        try:
            sweep(folder)
            exists = (folder / MANIFEST).exists()
            if exists and force:
                _clear(folder)
            elif exists:
                manifest = read_manifest(folder)
                _refuse_other_settings(folder, manifest.settings, settings)
                return cls(folder, manifest, handle)
            manifest = RunManifest(
                settings=settings,
                seed=seed,
                command=tuple(command),
                versions=dict(versions or {}),
                created=now(),
            )
            run = cls(folder, manifest, handle, new=True, made=made)
            run._write()
        except BaseException:
            os.close(handle)
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run folder with the settings it has.

        Raises:
            RunFolderError: there is none at ``path``, it is damaged, or in use.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            what = "has no run.json" if folder.is_dir() else "does not exist"
            raise RunFolderError(
                f"{folder} is not a run folder: it {what}; start one with "
                f"`mint-deploy compress --out {folder}`"
            )
        handle = lock(folder)
        try:
            sweep(folder)
            return cls(folder, read_manifest(folder), handle)
        except BaseException:
            os.close(handle)
            raise

    def close(self) -> None:
        """Let the folder go."""
        os.close(self._handle)

    def discard(self) -> None:
        """Take back a run that this process began and that holds nothing finished yet."""
        if self._new and not self.manifest.stages:
            _clear(self.path)
            (self.path / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody put something in: then it stays
                for folder in self._made:
                    folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------ files

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def hash(self, name: str) -> str:
        """Return the SHA-256 of a file of the run (or of all in a folder), or "" for none."""
        path = self.path / name
        if path.is_dir():
            inside = sorted(p.relative_to(self.path) for p in path.rglob("*") if p.is_file())
            text = "".join(f"{p} {self.hash(str(p))}\n" for p in inside)
            return hashlib.sha256(text.encode()).hexdigest()
        try:
            facts = path.stat()
        except FileNotFoundError:
            return ""
        key = (name, facts.st_mtime_ns, facts.st_size)
        if key not in self._hashes:
            self._hashes[key] = files.sha256(path)
        return self._hashes[key]

    # ------------------------------------------------------------ stages

    def fresh(self, stage: str, reads: Sequence[str], settings: Mapping[str, Any]) -> bool:
        """Whether ``stage`` is finished and nothing it depends on has changed since."""
        record = self.manifest.stages.get(stage)
        return (
            record is not None
            and dict(record.settings) == files.encode(dict(settings))
            and all((self.path / name).exists() for name in record.outputs)
            and dict(record.inputs) == {name: self.hash(name) for name in reads}
        )

    def complete(
        self,
        stage: str,
        *,
        reads: Sequence[str],
        writes: Sequence[str],
        settings: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Record that ``stage`` is finished; the files it wrote are in place already."""
        record = StageRecord(
            inputs={name: self.hash(name) for name in reads},
            settings=files.encode(dict(settings)),
            outputs=tuple(name for name in writes if (self.path / name).exists()),
            seconds=round(seconds, 3),
            finished=now(),
        )
        self._write(stages={**self.manifest.stages, stage: record})

    def drop(self, stages: Sequence[str], names: Sequence[str]) -> None:
        """Take ``stages`` as not done, and remove the files and folders ``names``."""
        for name in names:
            remove(self.path / name)
        left = {k: v for k, v in self.manifest.stages.items() if k not in stages}
        if left != self.manifest.stages:
            self._write(stages=left)

    def note(self, **facts: Any) -> None:
        """Record small facts that later stages need."""
        self._write(facts={**self.manifest.facts, **files.encode(facts)})

    def resettle(self, settings: Mapping[str, Any]) -> None:
        """Change settings of the run; the stages that depend on them are no longer fresh."""
        changed = files.encode(dict(settings))
        if changed != self.manifest.settings:
            self._write(settings=changed)

    def _write(self, **changes: Any) -> None:
        self.manifest = replace(self.manifest, **changes)
        files.write_value(self.path / MANIFEST, self.manifest)


# ---------------------------------------------------------------- opening, in detail


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check, without touching it, that a run of these settings may live in ``folder``.

    Raises:
        RunFolderError: not a run folder, or other settings.
    """
    _refuse_foreign(folder)
    if (folder / MANIFEST).exists():
        have = read_manifest(folder).settings
        _refuse_other_settings(folder, have, files.encode(dict(settings)))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, expected a folder; name another with --out")
    if not folder.is_dir() or (folder / MANIFEST).exists():
        return
    others = sorted(p.name for p in folder.iterdir() if p.name != ".lock" and not is_leftover(p))
    if others:
        raise RunFolderError(
            f"{folder} is not a run folder: it has no {MANIFEST}, but holds '{others[0]}'"
            f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}; nothing there was "
            "touched; name an empty or new folder with --out"
        )


def read_manifest(folder: Path) -> RunManifest:
    """Read a folder's run.json without holding the folder.

    Raises:
        RunFolderError: it is damaged.
    """
    try:
        return files.read_value(folder / MANIFEST, RunManifest)
    except DataError as error:
        raise RunFolderError(
            f"{folder} cannot be taken up: {error}; begin anew with --force"
        ) from error


def _refuse_other_settings(folder: Path, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    names = sorted(k for k in {*have, *want} if have.get(k) != want.get(k))
    if names:
        told = "; ".join(
            f"{n} is {_shown(have.get(n))} there, {_shown(want.get(n))} here" for n in names[:4]
        )
        raise RunFolderError(
            f"{folder} holds a run with other settings: {told}"
            f"{f'; and {len(names) - 4} more' if len(names) > 4 else ''}; name another folder "
            "with --out, or begin anew with --force"
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _clear(folder: Path) -> None:
    for name in FILES:
        remove(folder / name)
