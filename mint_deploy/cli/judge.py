"""The command that judges: ``compare``, a baseline against now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_deploy.cli import options as o
from mint_deploy.cli import show
from mint_deploy.errors import DataError, PromiseBroken

if TYPE_CHECKING:
    from mint_deploy.artifacts import Measurement
    from mint_deploy.compare import Verdict

__all__ = ["compare"]

Side = Annotated[Path, typer.Argument(help="A run folder, or a file of `bench --save-baseline`.")]


def compare(
    baseline: Side,
    now: Side,
    max_latency: Annotated[
        str | None, typer.Option(help="How much slower it may be, such as +5%.", metavar="LIMIT")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="How much more peak memory.", metavar="LIMIT")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="How much larger the file (run folders).", metavar="LIMIT")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Points (run folders).", metavar="POINTS")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Inconclusive is exit code 3, not 0.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Judge NOW against BASELINE: pass, fail (exit code 1) or inconclusive."""
    from mint_deploy.compare import Limit
    from mint_deploy.compare import compare as judge

    limits: dict[str, str | Limit] = {
        name: text
        for name, text in (("latency", max_latency), ("memory", max_memory), ("size", max_size))
        if text is not None
    }
    if max_accuracy_drop is not None:
        limits["accuracy drop"] = Limit(value=max_accuracy_drop, relative=False)
    figures: dict[str, tuple[float, float]] = {}
    if max_size is not None:
        figures["size"] = (_size(baseline), _size(now))
    if max_accuracy_drop is not None:
        figures["accuracy drop"] = (0.0, 100 * (_accuracy(baseline) - _accuracy(now)))
    verdict = judge(_measured(baseline), _measured(now), limits or None, figures=figures)
    if json:
        show.print_json({"state": verdict.state, "checks": verdict.checks})
    else:
        _print(verdict)
    if verdict.exit_code() == 1:
        raise PromiseBroken(f"{now} is worse than {baseline}")
    if verdict.exit_code(strict=strict):
        raise typer.Exit(verdict.exit_code(strict=strict))


def _measured(path: Path) -> Measurement:
    """The slim network's latency of a run folder, or the first measurement of a file."""
    from mint_deploy.bench import read

    found = read(path)
    return next((m for m in found if m.task.label == "slim"), found[0])


def _size(path: Path) -> float:
    return float(_stored(path, "deploy.json", "Deploy")["slim"]["bytes"])


def _accuracy(path: Path) -> float:
    steps = _stored(path, "accuracy.json", "AccuracySteps")["steps"]
    last = [s for s in steps if s["step"] not in ("dense", "control")][-1]
    return float((last["test"] or last["validation"])["top1"])


def _stored(path: Path, name: str, kind: str) -> dict[str, Any]:
    from mint_deploy.files import read_json

    if not path.is_dir():
        raise DataError(f"{path} is no run folder, so there is no {name}; compare two run folders")
    return read_json(path / name, kind=kind)


def _print(verdict: Verdict) -> None:
    head = ["", "", "baseline", "now", "limit", ""]
    found = [
        [c.name, c.state, _figure(c.baseline), _figure(c.now), c.limit, c.reason]
        for c in verdict.checks
    ]
    print(show.table([head, *found]))
    print(verdict.state)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"
