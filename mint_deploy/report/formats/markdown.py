"""Markdown for a pull request or a job's summary: the verdict, a row for each check, what is in doubt.

Names come from strangers: they are escaped and clipped. ``text(judged, limit_bytes=...)`` leaves out
the rows that matter least and says so; what failed stands first.
"""

from __future__ import annotations

from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._text import baseline, change, code, now, say

__all__ = ["text"]

#: what a comment or a summary takes when nothing else is said
_LIMIT_BYTES = 64_000
_ORDER = ("fail", "inconclusive", "pass")
_DOUBTS = 20
_MEANS = {
    "pass": "every limit is kept",
    "fail": "a limit is broken",
    "inconclusive": "nothing is broken as far as can be told, and something could not be told",
}


def text(judged: Judged, *, limit_bytes: int = _LIMIT_BYTES) -> str:
    """Return the summary of one comparison.

    Args:
        judged: what was judged.
        limit_bytes: how much it may be in UTF-8, 2,000 or more; rows beyond it are left out.
    """
    verdict = judged.verdict
    head = [
        f"## mint-deploy: {verdict.state}",
        f"{code(judged.now)} against {code(judged.baseline)}: {_MEANS[verdict.state]}"
        + (" (`--strict`: that is an error)." if _strictly(judged) else "."),
    ]
    tail = _tail(judged)
    rows = [
        f"| {c.name} | {say(c.subject, 200)} | **{c.state}** | {baseline(c)} | {now(c)} "
        f"| {change(c)} | {say(c.limit)} | {say(c.reason, 400)} |"
        for c in sorted(verdict.checks, key=lambda c: _ORDER.index(c.state))
    ]
    table = ["| figure | of | | baseline | now | change | limit | why |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"]  # fmt: skip
    room = limit_bytes - _size("\n\n".join([*head, *table, *tail])) - 300
    kept = 0
    while kept < len(rows) and (room := room - _size(rows[kept]) - 1) >= 0:
        kept += 1
    blocks = list(head)
    if rows:
        blocks.append("\n".join([*table, *rows[:kept]]))
    if kept < len(rows):
        blocks.append(
            f"{len(rows) - kept} more checks are left out: {limit_bytes:,} bytes are all that fits here. "
            "`mint-deploy compare --format json` has every one."
        )
    return "\n\n".join([*blocks, *tail]) + "\n"


def _strictly(judged: Judged) -> bool:
    return judged.strict and judged.verdict.state == "inconclusive"


def _size(block: str) -> int:
    return len(block.encode())


def _tail(judged: Judged) -> list[str]:
    """What stands below the table: notes, doubts, the machines."""
    verdict, out = judged.verdict, []
    if verdict.notes:
        out.append("\n".join(f"- {say(note, 400)}" for note in verdict.notes[:_DOUBTS]))
    if verdict.doubts:
        lines = [f"- {say(doubt, 400)}" for doubt in verdict.doubts[:_DOUBTS]]
        more = len(verdict.doubts) - _DOUBTS
        lines += [f"- and {more} more"] if more > 0 else []
        out.append("The measurements say against themselves:\n\n" + "\n".join(lines))
    seen: dict[str, None] = {}
    for pair in verdict.pairs:
        for m in (pair.baseline, pair.now):
            kind = m.machine.gpu or m.machine.board or m.machine.cpu
            seen[f"{say(kind, 80)}, {m.machine.cores:g} cores"] = None
    if seen:
        out.append(f"Measured on {'; '.join(list(seen)[:4])}.")
    return out
