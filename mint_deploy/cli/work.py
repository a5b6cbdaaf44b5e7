"""The commands that do the work: ``compress``, and the stages one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mint_deploy.cli import options as o
from mint_deploy.cli import show
from mint_deploy.settings import (
    DEMO,
    Request,
    from_flags,
    names_python,
    parse_floats,
    parse_input,
    read_config,
    restore,
)

__all__ = ["STAGE_COMMANDS", "compress", "score"]

#: flags that say how to run, not what to make
_RUNNING = ("resume", "force", "dry_run", "until", "config", "json", "quiet")


def compress(
    model: o.Model = None,
    weights: o.Weights = None,
    data: o.Data = None,
    input: o.Input = None,  # noqa: A002 - the flag is called so
    export_level: o.ExportLevel = None,
    attention: o.Attention = None,
    target: o.Target = None,
    power_mode: o.PowerMode = None,
    ratio: o.Ratio = None,
    params: o.Params = None,
    macs: o.Macs = None,
    plan: o.Plan = None,
    max_accuracy_drop: o.MaxDrop = None,
    criterion: o.Criterion = None,
    estimator: o.Estimator = None,
    images: o.Images = None,
    ignore: o.Ignore = None,
    round_to: o.RoundTo = None,
    lossless: o.Lossless = None,
    recover: o.Recover = None,
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    distill: o.Distill = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    loss: o.Loss = None,
    metric: o.Metric = None,
    precision: o.Precision = None,
    int8_max_drop: o.Int8Drop = None,
    calibration: o.Calibration = None,
    pt2: o.Pt2 = None,
    out: o.Out = None,
    resume: o.Resume = False,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    until: o.Until = None,
    seed: o.Seed = None,
    workers: o.Workers = None,
    device: o.Device = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Take a network to a compressed, proven, measured and deployable one.

    With no MODEL and no mint.toml: a small demonstration network, trained on the spot.
    """
    _start(dict(locals()))


def score(
    model: o.Model = None,
    weights: o.Weights = None,
    data: o.Data = None,
    input: o.Input = None,  # noqa: A002 - the flag is called so
    export_level: o.ExportLevel = None,
    attention: o.Attention = None,
    target: o.Target = None,
    power_mode: o.PowerMode = None,
    criterion: o.Criterion = None,
    estimator: o.Estimator = None,
    images: o.Images = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    metric: o.Metric = None,
    out: o.Out = None,
    resume: o.Resume = False,
    force: o.Force = False,
    seed: o.Seed = None,
    workers: o.Workers = None,
    device: o.Device = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Start a run: load, sample and rank. The stages below continue it."""
    _start({**locals(), "until": "score", "dry_run": False})


def _start(given: dict[str, Any]) -> None:
    from mint_deploy import pipeline, progress

    run = {name: given.pop(name) for name in _RUNNING}
    for name, parse in (("input", parse_input), ("mean", None), ("std", None)):
        if given[name] is not None:
            given[name] = parse(given[name]) if parse else parse_floats(name, given[name])
    given["ignore"] = tuple(given["ignore"]) if given.get("ignore") else None
    teller = progress.for_terminal(quiet=run["quiet"])
    request = _request(given, run["config"], resume=run["resume"], teller=teller)
    if run["dry_run"]:
        show.dry_run(pipeline.outlook(request, until=run["until"]), request, as_json=run["json"])
        return
    result = pipeline.run(
        request,
        resume=run["resume"],
        force=run["force"],
        until=run["until"],
        progress=teller,
        command=["mint-deploy", *sys.argv[1:]],
    )
    if run["until"] == "score":
        show.scores(result, as_json=run["json"])
    else:
        show.result(result, as_json=run["json"])
    result.require_promise()


def _request(flags: dict[str, Any], config: Path | None, *, resume: bool, teller: Any) -> Request:
    path, keys = read_config(config)
    request = from_flags(flags, keys)
    if resume and (request.folder / "run.json").is_file():
        from mint_deploy.runfolder import read_manifest

        recorded = read_manifest(request.folder).settings
        return restore(recorded, request.folder, flags)
    if path is not None:
        teller.say(f"settings from {path}; flags win")
        for spec in names_python(request):
            teller.say(f"{path} names {spec}: it will be imported and run")
    if request.demo:
        teller.say(
            f"no MODEL was named: this is the embedded demo, {DEMO}, trained on the spot on "
            "scikit-learn's digits"
        )
    return request


# ---------------------------------------------------------------- one stage on a run folder


def _advance(path: Path, stage: str, changes: dict[str, Any], *, json: bool, quiet: bool) -> None:
    from mint_deploy import pipeline, progress

    force = bool(changes.pop("force", False))
    result = pipeline.advance(
        path,
        stage,
        changes=changes,
        force=force,
        progress=progress.for_terminal(quiet=quiet),
    )
    show.result(result, as_json=json, stage=stage)
    result.require_promise()


def _plan(
    run: o.Run,
    ratio: o.Ratio = None,
    params: o.Params = None,
    macs: o.Macs = None,
    plan: o.Plan = None,
    ignore: o.Ignore = None,
    round_to: o.RoundTo = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Choose which units stay."""
    changes = {
        "ratio": ratio,
        "params": params,
        "macs": macs,
        "plan": plan,
        "ignore": tuple(ignore) if ignore else None,
        "round_to": round_to,
        "force": force,
    }
    _advance(run, "plan", changes, json=json, quiet=quiet)


def _cut(
    run: o.Run,
    plan: o.Plan = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Cut, and prove the cut; what is not proven is rolled back."""
    _advance(run, "cut", {"plan": plan, "force": force}, json=json, quiet=quiet)


def _export(
    run: o.Run,
    precision: o.Precision = None,
    int8_max_drop: o.Int8Drop = None,
    calibration: o.Calibration = None,
    pt2: o.Pt2 = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write ONNX, compare it with PyTorch, and pack the bundle."""
    changes = {
        "precision": precision,
        "int8_max_drop": int8_max_drop,
        "calibration": calibration,
        "pt2": pt2,
        "force": force,
    }
    _advance(run, "export", changes, json=json, quiet=quiet)


def _recover(
    run: o.Run,
    recover: o.Recover = None,
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    distill: o.Distill = None,
    loss: o.Loss = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Repair and train what is left, and the control beside it."""
    changes = {
        "recover": recover,
        "epochs": epochs,
        "lr": lr,
        "distill": distill,
        "loss": loss,
        "force": force,
    }
    _advance(run, "recover", changes, json=json, quiet=quiet)


def _report(
    run: o.Run,
    max_accuracy_drop: o.MaxDrop = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the report anew, and judge the promise."""
    _advance(run, "report", {"max_accuracy_drop": max_accuracy_drop}, json=json, quiet=quiet)


def _plain(stage: str, text: str) -> Callable[..., None]:
    def command(
        run: o.Run, force: o.Force = False, json: o.Json = False, quiet: o.Quiet = False
    ) -> None:
        _advance(run, stage, {"force": force}, json=json, quiet=quiet)

    command.__doc__ = text
    return command


#: ``bench RUN`` stands with ``bench FILE`` in :mod:`mint_deploy.cli.measure`
STAGE_COMMANDS: dict[str, Callable[..., None]] = {
    "plan": _plan,
    "cut": _cut,
    "recover": _recover,
    "export": _export,
    "build": _plain("build", "Make an engine for this machine."),
    "report": _report,
}
