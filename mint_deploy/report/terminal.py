"""The short result that ``compress`` prints: before and after, what holds, what to do next.

Text goes to rich as text, never as its markup: a layer may be called ``[red]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from mint_deploy.report import view, words

__all__ = ["summary"]

_STYLES = {"kept": "green", "done": "green", "broken": "bold red"}
#: rows that say twice what another row says already
_TWICE = ("weight_bytes",)
#: for a terminal that does not know them
_PLAIN = str.maketrans(
    {"\u00d7": "x", "\u2192": "->", "\u2212": "-", "\u2013": "-", "\u2026": "...", "\u00b5": "u"}
)


def summary(body: Mapping[str, Any]) -> _Summary:
    """Return the result of a run as a rich renderable of about twenty lines.

    Args:
        body: what :func:`mint_deploy.report.collect` returned.

    Returns:
        something for ``Console.print``; without a terminal it is plain text.
    """
    return _Summary(body)


@dataclass(frozen=True, slots=True)
class _Summary:
    body: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = options.ascii_only

        def text(content: object, style: str = "") -> Text:
            line = words.plain(content)
            if ascii_only:
                line = line.translate(_PLAIN).encode("ascii", "replace").decode()
            return Text(line, style=style)

        body = self.body
        state = body["status"]
        head = text(words.clip(body["title"], 100), "bold")
        head.append_text(text(f"  {state['text']}", _STYLES.get(state["state"], "yellow")))
        yield head
        yield text("")
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
        table.add_column("")
        for side in ("dense", "slim"):
            table.add_column(side, justify="right", no_wrap=True)
        table.add_column("")
        for line in self._lines():
            change = f"{line.change} ({line.detail})" if line.detail else line.change
            where = ", measured here" if line.key in ("latency", "peak_memory") else ""
            table.add_row(
                text(line.label + where),
                text(line.before, "dim"),
                text(line.after, "bold"),
                text(line.reason, "dim") if line.reason else text(change, "cyan"),
            )
        yield table
        notes = self._notes()
        if notes:
            yield text("")
        for said, style in notes:
            yield text(said, style)
        if body["next"]:
            yield text("")
            yield text("Next", "bold")
        for step in body["next"]:
            yield text(f"  {step['text']}")
            if step["command"]:
                yield text(f"    {step['command']}", "cyan")
        yield text(f"Report: {body['run']['folder'].rstrip('/')}/report.html")

    def _lines(self) -> list[view.Line]:
        """Return the rows worth a line: none that repeats another, none that no stage made yet."""
        lines = [line for line in view.before_after(self.body) if line.key not in _TWICE]
        if any(line.key == "accuracy_test" and not line.reason for line in lines):
            lines = [line for line in lines if line.key != "accuracy_validation"]
        made = [n for n in lines if n.reason != "not done yet" or n.before != words.NOT_HERE]
        return made or lines[:1]

    def _notes(self) -> list[tuple[str, str]]:
        body = self.body
        notes: list[tuple[str, str]] = []
        promise = body["accuracy"].get("promise") or {}
        if promise.get("text"):
            kept = promise["kept"]
            style = "green" if kept else "bold red" if kept is False else "yellow"
            notes.append((f"Promise {promise['text']}", style))
        control = body["accuracy"].get("against_control")
        if control is not None:
            notes.append(
                (
                    f"Against dense with the same recovery: {words.points(control)} points.",
                    "",
                )
            )
        gate = body["gate"]
        if gate["done"] and gate["total"]:
            style = "" if gate["proven"] == gate["total"] else "yellow"
            worst = "" if gate["max_error"] is None else f" ({words.error(gate['max_error'])})"
            notes.append(
                (
                    f"Cut proven exact in {gate['proven']} of {gate['total']} groups{worst}.",
                    style,
                )
            )
        if body["lossless"].get("text"):
            notes.append((f"Apart from the budget: {body['lossless']['text']}.", ""))
        board = body["predicted"].get("board") or "the board"
        for row in view.board_rows(body)[:3]:
            if row["predicted"] != words.NOT_HERE:
                span = f" ({row['predicted_span']})" if row["predicted_span"] else ""
                said = f"{row['label']} on {board}: {row['predicted']}{span}"
                notes.append((f"{said}, predicted, not measured", "yellow"))
        doubts = body["doubts"]
        if doubts:
            more = f" (and {len(doubts) - 1} more in the report)" if len(doubts) > 1 else ""
            notes.append((f"Doubt: {words.clip(doubts[0]['text'], 160)}{more}", "yellow"))
        return notes
