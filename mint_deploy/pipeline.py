"""The story: a request becomes a run folder, stage by stage, and the folder becomes a result.

The stages stand in :mod:`mint_deploy.stages`, what each does in :mod:`mint_deploy.steps` under its
name. A stage whose files and settings are unchanged is not done twice.
"""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint_deploy._version import __version__
from mint_deploy.errors import (
    Interrupted,
    MintDeployError,
    PromiseBroken,
    RunFolderError,
)
from mint_deploy.files import sha256
from mint_deploy.folders import explain_full_disk
from mint_deploy.progress import Progress
from mint_deploy.runfolder import (
    MANIFEST,
    RunFolder,
    check_folder,
    read_manifest,
)
from mint_deploy.settings import Request, restore
from mint_deploy.stages import NAMES, STAGES, TRAINING, Stage, stage_named
from mint_deploy.target import load_target

if TYPE_CHECKING:
    from torch import nn

__all__ = ["STAGES", "Result", "Stage", "advance", "compress", "result_of", "run", "stage_named"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to.

    ``report`` is the body of report.json, ``done`` the stages that this call did, ``kept`` whether
    the promise about accuracy holds (None: none was made, or not decided).
    """

    run: Path
    report: Mapping[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    kept: bool | None = None
    warnings: tuple[str, ...] = ()

    def require_promise(self) -> None:
        """Raise if the promise is broken.

        Raises:
            PromiseBroken: with the figures.
        """
        if self.kept is False:
            text = self.report.get("accuracy", {}).get("promise", {}).get("text", "")
            raise PromiseBroken(f"a promise is broken: {text or 'see the report'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a run would do: its stages in order, and those that are done already."""

    folder: Path
    target: str
    stages: tuple[Stage, ...]
    done: tuple[str, ...]


# ---------------------------------------------------------------- the story


def compress(
    model: nn.Module | str | None = None,
    data: Any = None,
    *,
    resume: bool = False,
    force: bool = False,
    until: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Compress a network for a target, from the network to the report.

    Args:
        model: a module, or a MODEL as on the command line; None: the embedded demo.
        data: a SPEC as on the command line, or what :func:`mint_deploy.data.as_splits` takes.
        resume: take a stopped run up.
        force: throw an existing run in the same folder away.
        until: the last stage to do.
        progress: who is told how far it is; nobody by default.
        settings: any field of :class:`mint_deploy.settings.Request`: ``target="jetson"``,
            ``macs=0.5``, ``out="run"``.

    Raises:
        MintDeployError: anything the caller can mend; nothing is left half-written.
        Interrupted: Ctrl-C; ``resume=True`` takes the run up to the same result.
    """
    given: dict[str, Any] = {}
    if model is not None and not isinstance(model, str):
        given["model"] = model
        model = f"{type(model).__qualname__} (in memory)"
    if data is not None and not isinstance(data, str):
        given["data"] = data
        data = f"{type(data).__qualname__} (in memory)"
    request = Request(model=model, data=data, **settings)
    return run(request, resume=resume, force=force, until=until, progress=progress, given=given)


def run(
    request: Request,
    *,
    resume: bool = False,
    force: bool = False,
    until: str | None = None,
    progress: Progress | None = None,
    given: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
) -> Result:
    """Do what ``request`` asks for, in its run folder (see :func:`compress`).

    ``given`` holds a model or data that live in memory, under those names.
    """
    last = stage_named(until or NAMES[-1])
    folder = request.folder
    with explain_full_disk(folder, "prepare"):
        opened = RunFolder.start(
            folder,
            request.settings(),
            seed=request.seed,
            command=command,
            versions=versions(),
            force=force,
        )
    with closing(opened):
        begun = bool(opened.manifest.stages) or (opened / "checkpoints").exists()
        if begun and not resume and not _finished(opened, last):
            raise RunFolderError(
                f"{folder} holds a run of these settings that stopped before '{_next(opened)}'; "
                "--resume takes it up, --force begins anew"
            )
        again = "the same command with --resume"
        return _go(opened, request, last, progress or Progress(), given or {}, again)


def outlook(request: Request, *, until: str | None = None) -> Outlook:
    """Say what :func:`run` would do; nothing is read but the target and the folder's manifest.

    Raises:
        UnknownName: no such stage or target.
        RunFolderError: the folder cannot be used for this.
    """
    last = stage_named(until or NAMES[-1])
    target = load_target(request.target, power_mode=request.power_mode)
    done: tuple[str, ...] = ()
    check_folder(request.folder, request.settings())
    if (request.folder / MANIFEST).is_file():
        done = tuple(read_manifest(request.folder).stages)
    stages = STAGES[: NAMES.index(last.name) + 1]
    return Outlook(folder=request.folder, target=target.name, stages=stages, done=done)


def advance(
    path: str | Path,
    stage: str,
    *,
    changes: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Continue an existing run up to ``stage``, with some settings changed (``None``: unchanged).

    Stages before it that are missing, or that the changes touch, are done first.

    Raises:
        RunFolderError: there is no run at ``path``, or it is in use.
    """
    last = stage_named(stage)
    with closing(RunFolder.open(path)) as opened:
        request = restore(opened.manifest.settings, Path(path), changes or {})
        if any(request.settings()[name] != value for name, value in _given(opened).items()):
            opened.drop((), TRAINING)  # they belong to the settings that were
        had = opened.manifest.stages
        if force or last.repeat:
            opened.drop((last.name,), ())
        if last.repeat and STAGES[-1].name in had:
            last = STAGES[-1]  # a report that was written tells the new figures too
        return _go(opened, request, last, progress or Progress(), {}, "the same command")


def _given(opened: RunFolder) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in opened.manifest.settings.items()}


def _go(
    opened: RunFolder,
    request: Request,
    last: Stage,
    progress: Progress,
    given: Mapping[str, Any],
    again: str,
) -> Result:
    """Do every stage up to ``last`` that is not fresh."""
    _tell_versions(opened, progress)
    done: list[str] = []
    job: Any = None
    stage = STAGES[0]
    try:
        for stage in STAGES[: NAMES.index(last.name) + 1]:
            if opened.fresh(stage.name, stage.reads, _depends(opened, request, stage)):
                continue
            work = importlib.import_module("mint_deploy.steps")
            job = job or work.Job(opened, request, progress, given)
            before = {name: opened.hash(name) for name in stage.writes}
            begun = time.monotonic()
            with (
                progress.stage(stage.name, stage.title),
                explain_full_disk(opened.path, stage.name),
            ):
                getattr(work, stage.name)(job)
                if any(text and text != opened.hash(name) for name, text in before.items()):
                    _drop_later(opened, stage, job)
                opened.resettle(request.settings())
                opened.complete(
                    stage.name,
                    reads=stage.reads,
                    writes=stage.writes,
                    settings=_depends(opened, request, stage),
                    seconds=time.monotonic() - begun,
                )
            done.append(stage.name)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            f"stopped in stage '{stage.name}'; what is finished is kept in {opened.path}; "
            f"{again} takes it up"
        ) from None
    except MintDeployError:
        opened.discard()
        raise
    return result_of(opened.path, done=done, warnings=progress.warnings)


def _tell_versions(opened: RunFolder, progress: Progress) -> None:
    began, here = opened.manifest.versions, versions()
    changed = [f"{n} {began[n]} then, {here.get(n)} now" for n in began if began[n] != here.get(n)]
    if changed:
        progress.warn(
            f"{opened.path} was begun with other versions ({'; '.join(changed)}): results may differ"
        )


def _drop_later(opened: RunFolder, stage: Stage, job: Any) -> None:
    """Forget what was made from an older outcome of ``stage``, so that a folder is of one piece."""
    here = NAMES.index(stage.name) + 1
    own = {name for earlier in STAGES[:here] for name in earlier.writes}
    later = [name for after in STAGES[here:] for name in after.writes if name not in own]
    if stage.name in NAMES[: NAMES.index("recover")]:
        later += TRAINING
    if stage.name in NAMES[1 : NAMES.index("cut")]:
        job.keep_first_step()
    opened.drop(NAMES[here:], later)


def _depends(opened: RunFolder, request: Request, stage: Stage) -> dict[str, Any]:
    """What a stage depends on beside files: its settings, and which network and data these are."""
    settings = request.settings()
    values = {name: settings[name] for name in stage.settings}
    if stage.name == "plan" and request.plan:
        # a file that is gone since is the one that was read
        recorded = opened.manifest.stages.get("plan")
        known = recorded.settings.get("plan_sha256") if recorded else None
        values["plan_sha256"] = sha256(request.plan) if Path(request.plan).is_file() else known
    if stage.name != "prepare":
        facts = opened.manifest.facts
        values["digests"] = [facts.get("model_digest"), facts.get("data_digest")]
    return values


def _finished(opened: RunFolder, last: Stage) -> bool:
    return all(s.name in opened.manifest.stages for s in STAGES[: NAMES.index(last.name) + 1])


def _next(opened: RunFolder) -> str:
    return next(n for n in NAMES if n not in opened.manifest.stages)


def result_of(path: Path, *, done: Sequence[str] = (), warnings: Sequence[str] = ()) -> Result:
    """Read what a run folder has come to; sections of stages that are not done say so."""
    from mint_deploy.report import collect

    body = collect(path)
    return Result(
        run=path,
        report=body,
        done=tuple(done),
        kept=(body["accuracy"].get("promise") or {}).get("kept"),
        warnings=tuple(warnings),
    )


def versions() -> dict[str, str]:
    """Return the versions that may change a result, without importing anything."""
    found = {"python": platform.python_version(), "mint-deploy": __version__}
    for name in ("torch", "numpy", "onnx", "onnxruntime", "onnxscript"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
