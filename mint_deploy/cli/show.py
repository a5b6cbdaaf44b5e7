"""What the commands print on stdout: a result as text, or as one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mint_deploy.settings import Request

if TYPE_CHECKING:
    from mint_deploy.pipeline import Outlook, Result

__all__ = ["dry_run", "print_json", "result", "scores", "table"]


def print_json(value: Any) -> None:
    """Print one JSON object."""
    from mint_deploy.files import encode  # needs numpy

    print(json.dumps(encode(value), indent=1, allow_nan=False))


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Lay rows out in columns; the first is left-aligned, the others too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(indent + line.rstrip() for line in lines)


def dry_run(outlook: Outlook, request: Request, *, as_json: bool) -> None:
    """Print what a run would do."""
    if as_json:
        print_json({"settings": request.settings(), "outlook": outlook})
        return
    name, value = request.budget
    choice = f"--plan {request.plan}" if request.plan else f"--{name} {value:g}"
    print(f"{request.model_name} for {outlook.target}, {choice}, in {outlook.folder}")
    rows = [
        [s.name, "done before" if s.name in outlook.done else s.title, ", ".join(s.writes)]
        for s in outlook.stages
    ]
    print(table(rows))
    print("nothing was done")


def result(found: Result, *, as_json: bool, stage: str | None = None) -> None:
    """Print what a run came to: the table, the promise, the doubts' number, what to do next."""
    if as_json:
        print_json(
            {"run": found.run, "done": found.done, "kept": found.kept, "warnings": found.warnings,
             "report": found.report}
        )  # fmt: skip
        return
    from mint_deploy.report import precision, view

    body = found.report
    if not found.done:
        what = f"'{stage}'" if stage else "the run"
        print(f"{what} was done before, with these settings; here is what it came to")
    print(f"\n{body['title']}: {body['verdict']}")
    lines = [line for line in view.before_after(body) if not line.reason]
    if lines:
        head = ["", "dense", "slim", "", ""]
        print(table([head, *([x.label, x.before, x.after, x.change, x.detail] for x in lines)]))
    for made in precision.rows(body["precision"]):
        change = f"{made['change']} {made['span']}".strip()
        said = f"{made['after']}, {change}; {made['size']}; takes {made['time']} of float32's time"
        print(f"  {made['label']}: {said}")
    for row in view.steps(body):
        if row.step == "control" and row.found:
            print(f"  {row.label}: {row.test or row.validation} {row.test_span}".rstrip())
    board = view.board_rows(body)
    if board:
        print(f"\n  {body['run']['target']}: predicted, not measured (beside it: this machine)")
        print(table([[r["label"], r["predicted"], r["measured"]] for r in board]))
    promise = body["accuracy"].get("promise") or {}
    if promise.get("text"):
        print(f"\n  {promise['text']}")
    if promise.get("max_accuracy_drop") is not None and found.kept is None:
        print("warning: the promise is neither kept nor broken on this data", file=sys.stderr)
    if body["doubts"]:
        count = len(body["doubts"])
        print(f"\n  {count} doubt{'s are' if count > 1 else ' is'} listed in the report")
    print(f"\nin {found.run}: {', '.join(_files(body['run']['files']))}")
    for step in body["next"]:
        print(f"next: {step['text']}" + (f"\n      {step['command']}" if step["command"] else ""))


def scores(found: Result, *, as_json: bool) -> None:
    """Print the ranking of a run that has scored; a plan that was given needs none."""
    path = found.run / "scores.npz"
    if not path.exists():
        result(found, as_json=as_json, stage="score")
        return
    from mint_deploy.report.ranking import ranking, whole
    from mint_deploy.scores_file import read_scores

    read = read_scores(path)
    if as_json:
        print_json(
            {"run": found.run, "done": found.done, "kept": found.kept, "warnings": found.warnings,
             "seconds": found.report["run"]["seconds"], "scores": whole(read),
             "report": found.report}
        )  # fmt: skip
        return
    from mint_deploy.cli.ranking import say

    if not found.done:
        print("'score' was done before, with these settings; here is what it came to")
    say(ranking(read), run=found.run, seconds=found.report["run"]["seconds"])


def _files(names: Sequence[str]) -> list[str]:
    networks = ("model.onnx", "model.int8.onnx", "model.fp16.onnx", "slim.safetensors")
    shown = ("report.html", *networks, "plan.json", "bundle")
    return [name for name in shown if name in names]
