"""The verdict for a person at a terminal, and what ``compare`` prints when no format is named."""

from __future__ import annotations

from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._text import baseline, change, console, now

__all__ = ["text"]

_HEAD = ("", "", "baseline", "now", "change", "limit")


def text(judged: Judged) -> str:
    """Return the checks under what they are about, the notes and the doubts; the last line is the state alone."""
    verdict = judged.verdict
    rows = [(c.name, c.state, baseline(c), now(c), change(c), c.limit) for c in verdict.checks]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    lines: list[str] = []
    about = None
    for check, row in zip(verdict.checks, rows, strict=True):
        if check.subject != about:
            about = check.subject
            lines.append(console(about or "the whole run"))
            lines += [_line(_HEAD, widths)] if len(lines) == 1 else []
        lines.append(_line(row, widths))
        lines += [f"      {console(check.reason)}"] if check.reason else []
    lines += [console(note) for note in verdict.notes]
    lines += [f"doubt: {console(doubt)}" for doubt in verdict.doubts]
    return "\n".join([*lines, verdict.state]) + "\n"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  " + "  ".join(padded).rstrip()
