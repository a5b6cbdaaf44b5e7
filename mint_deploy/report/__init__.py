"""The report of a run: report.json for machines, report.md for a pull request, report.html to read.

    body = collect(run)      # the body of report.json
    render(run)              # writes report.json, report.md and report.html, each atomically

A run that is not finished gives a report that says so; see :mod:`mint_deploy.report.body`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint_deploy import files

__all__ = ["collect", "render"]


def collect(run: Path) -> dict[str, Any]:
    """Return the body of report.json for the run folder ``run``.

    Args:
        run: the folder; a run that is not finished gives a report whose open sections say so.

    Raises:
        RunFolderError: no such folder, or nothing of a run is in it.
    """
    from mint_deploy.report import body  # the modules of this package import each other from it

    return body.collect(run)


def render(run: Path, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write report.json, report.md and report.html into the run folder and return the body.

    All three are made before the first is written, and each replaces its predecessor at once.

    Args:
        run: the run folder.
        body: what :func:`collect` returned, where it is at hand already.

    Raises:
        RunFolderError: no such folder, or nothing of a run is in it.
    """
    from mint_deploy.report.html import page
    from mint_deploy.report.markdown import text

    run = Path(run)
    said = dict(body) if body is not None else collect(run)
    names = {*said["run"]["files"], "report.json", "report.md", "report.html"}
    said["run"] = {**said["run"], "files": sorted(names)}
    html, markdown = page(said), text(said)
    files.write_json(run / "report.json", said, kind="Report")
    for name, content in (("report.md", markdown), ("report.html", html)):
        with files.atomic(run / name) as part:
            part.write_text(content, encoding="utf-8")
    return said
