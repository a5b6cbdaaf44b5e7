"""What GitHub's runner reads: annotations on the log, and the summary of a job's step.

A workflow command is a line ``::error title=...::message``; in the message ``%`` and line ends are escaped,
in a property also ``:`` and ``,``. The runner reads them on either stream and shows ten of each kind a step.
A step's summary is a file that it appends to; beyond 1 MiB the whole of it is dropped.
Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mint_deploy.errors import DataError

if TYPE_CHECKING:
    from mint_deploy.report.formats import Judged

__all__ = ["SUMMARY_BYTES", "annotate", "append_summary"]

#: what a step's summary may be, in bytes
SUMMARY_BYTES = 1 << 20
#: annotations of one kind that are shown for a step
_SHOWN = 10
#: below this there is no room for a summary that says anything
_LEAST = 2_000


def annotate(judged: Judged) -> list[str]:
    """Return a workflow command for each check that is not a pass, ten of a kind at most.

    What fails is an error; what is inconclusive a warning, or an error where ``strict``.
    """
    out = []
    for outcome, command in (("fail", "error"), ("inconclusive", "warning")):
        found = [c for c in judged.verdict.checks if judged.outcome(c) == outcome]
        shown = found if len(found) <= _SHOWN else found[: _SHOWN - 1]
        for check in shown:
            about = f"{check.subject}: " if check.subject else ""
            title = _property(f"mint-deploy compare: {check.name} {check.state}")
            out.append(f"::{command} title={title}::{_data(about + check.reason)}")
        if len(shown) < len(found):
            more = f"and {len(found) - len(shown)} more: see the summary"
            out.append(f"::{command} title=mint-deploy compare::{_data(more)}")
    return out


def _data(value: str) -> str:
    from mint_deploy.report import words

    return words.plain(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def append_summary(path: Path, judged: Judged) -> bool:
    """Append the Markdown to a step's summary, and return whether there was room for it.

    Args:
        path: the file; what earlier commands of the step wrote stays.
        judged: what was judged; rows that do not fit are left out, and a sentence says so.

    Raises:
        DataError: the file cannot be written.
    """
    from mint_deploy.report.formats.markdown import text

    try:
        before = path.stat().st_size if path.exists() else 0
        room = SUMMARY_BYTES - before - 1
        if room < _LEAST:
            return False
        with path.open("a", encoding="utf-8", newline="\n") as summary:
            summary.write(("\n" if before else "") + text(judged, limit_bytes=room))
    except OSError as error:
        raise DataError(f"cannot write the summary {path}: {error.strerror or error}") from error
    return True
