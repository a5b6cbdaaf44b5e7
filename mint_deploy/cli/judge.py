"""The command that judges: ``compare``, a baseline against now."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from mint_deploy.cli import options as o
from mint_deploy.cli.actions import annotate, append_summary
from mint_deploy.cli.sides import accuracy_drop, open_side
from mint_deploy.errors import PromiseBroken

if TYPE_CHECKING:
    from mint_deploy.compare import Limit
    from mint_deploy.report.formats import Judged

__all__ = ["compare"]

_CLOCKS = "Limits on figures of the clock (between equal machines)"
_COUNTS = "Limits on figures that no clock moves (on any machine)"
_OUT = "What comes out"


def _limit(panel: str, text: str, *names: str, metavar: str = "LIMIT") -> OptionInfo:
    option: OptionInfo = typer.Option(
        *names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return option


Side = Annotated[
    str,
    typer.Argument(
        help="A run folder or a file of `bench --save-baseline`; FILE#LABEL: one label of it.",
    ),
]
Latency = Annotated[str | None, _limit(_CLOCKS, "How much slower, such as +5%.", "--max-latency")]
P90 = Annotated[str | None, _limit(_CLOCKS, "The same for p90.", "--max-p90")]
P95 = Annotated[str | None, _limit(_CLOCKS, "The same for p95.", "--max-p95")]
P99 = Annotated[str | None, _limit(_CLOCKS, "The same for p99.", "--max-p99")]
Rate = Annotated[
    str | None, _limit(_CLOCKS, "How many samples a second fewer: -5%.", "--min-throughput")
]
Memory = Annotated[str | None, _limit(_CLOCKS, "How much more peak memory.", "--max-memory")]
GpuMemory = Annotated[
    str | None, _limit(_CLOCKS, "How much more memory of the GPU.", "--max-gpu-memory")
]
Energy = Annotated[str | None, _limit(_CLOCKS, "How much more energy.", "--max-energy")]
Size = Annotated[str | None, _limit(_COUNTS, "How much larger the file.", "--max-size")]
Params = Annotated[str | None, _limit(_COUNTS, "How many more parameters.", "--max-params")]
Macs = Annotated[str | None, _limit(_COUNTS, "How many more multiply-adds.", "--max-macs")]
Weights = Annotated[str | None, _limit(_COUNTS, "How many more bytes of weights.", "--max-weights")]
Activations = Annotated[
    str | None, _limit(_COUNTS, "How many more bytes of activations.", "--max-activations")
]
Drop = Annotated[
    float | None,
    _limit(_COUNTS, "Points less accurate (run folders).", "--max-accuracy-drop", metavar="POINTS"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Inconclusive is exit code 3, not 0.")]
Confidence = Annotated[float, typer.Option(help="Of the intervals.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="text, markdown, json, csv, junit, bmf, github-action or github-action-bigger.",
        rich_help_panel=_OUT,
    ),
]
JUnit = Annotated[
    Path | None,
    typer.Option("--junit", help="Write JUnit XML here, too.", rich_help_panel=_OUT),
]
Summary = Annotated[
    Path | None,
    typer.Option(
        "--summary",
        help="Append Markdown to this file; GitHub names its own.",
        envvar="GITHUB_STEP_SUMMARY",
        rich_help_panel=_OUT,
        show_default=False,
    ),
]


def compare(
    baseline: Side,
    now: Side,
    max_latency: Latency = None,
    max_p90: P90 = None,
    max_p95: P95 = None,
    max_p99: P99 = None,
    min_throughput: Rate = None,
    max_memory: Memory = None,
    max_gpu_memory: GpuMemory = None,
    max_energy: Energy = None,
    max_size: Size = None,
    max_params: Params = None,
    max_macs: Macs = None,
    max_weights: Weights = None,
    max_activations: Activations = None,
    max_accuracy_drop: Drop = None,
    strict: Strict = False,
    confidence: Confidence = 0.95,
    form: Format = "text",
    junit: JUnit = None,
    summary: Summary = None,
    json: o.Json = False,
) -> None:
    """Judge NOW against BASELINE: pass, fail (exit code 1) or inconclusive.

    Without a limit: --max-latency +5%.
    """
    from mint_deploy.compare import Limit
    from mint_deploy.compare import compare as judge
    from mint_deploy.report.formats import Judged, known, render

    wanted: dict[str, str | Limit | None] = {
        "latency": max_latency,
        "p90": max_p90,
        "p95": max_p95,
        "p99": max_p99,
        "throughput": min_throughput,
        "memory": max_memory,
        "gpu memory": max_gpu_memory,
        "energy": max_energy,
        "size": max_size,
        "params": max_params,
        "macs": max_macs,
        "weights": max_weights,
        "activations": max_activations,
    }
    form = "json" if json else form
    if form not in known():  # before anything is read
        from mint_deploy.errors import UnknownName

        raise UnknownName("format", form, known())
    sides = open_side(baseline), open_side(now)
    limits = {name: given for name, given in wanted.items() if given is not None}
    figures: dict[str, tuple[float, float]] = {}
    if max_accuracy_drop is not None:
        limits["accuracy drop"] = Limit(value=max_accuracy_drop, relative=False)
        figures["accuracy drop"] = (0.0, accuracy_drop(*sides))
    verdict = judge(
        sides[0].measured,
        sides[1].measured,
        limits or None,
        figures=figures,
        confidence=confidence,
    )
    judged = Judged(verdict=verdict, baseline=baseline, now=now, strict=strict)
    print(render(form, judged), end="")
    _write(judged, junit, summary)
    _end(judged)


def _write(judged: Judged, junit: Path | None, summary: Path | None) -> None:
    """The files beside the result; what GitHub reads goes to stderr, so that stdout stays the result."""
    from mint_deploy.files import atomic
    from mint_deploy.report.formats import render

    if junit is not None:
        with atomic(junit) as part:
            part.write_text(render("junit", judged), encoding="utf-8")
    if summary is not None and not append_summary(summary, judged):
        print(f"warning: no room is left in the summary {summary}", file=sys.stderr)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotate(judged):
            print(line, file=sys.stderr)


def _end(judged: Judged) -> None:
    """Leave with the exit code of the verdict."""
    verdict = judged.verdict
    if verdict.exit_code() == 1:
        raise PromiseBroken(f"{judged.now} is worse than {judged.baseline}")
    if verdict.state == "inconclusive":
        text = f"{judged.now} could not be told from {judged.baseline}; see why above"
        print(f"{'error' if judged.strict else 'warning'}: inconclusive: {text}", file=sys.stderr)
    if code := verdict.exit_code(strict=judged.strict):
        raise typer.Exit(code)
