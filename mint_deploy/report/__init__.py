"""The report of a run: report.json for machines, report.md for a pull request, report.html to read.

    body = collect(run)      # the body of report.json
    render(run)              # writes report.json, report.md and report.html, each atomically
    html_of_measurements(measurements, comparisons)   # the page of what `bench` measured without a run folder

A run that is not finished gives a report that says so; see :mod:`mint_deploy.report.body`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint_deploy import files

if TYPE_CHECKING:
    from mint_deploy.artifacts import Comparison, Measurement
    from mint_deploy.compare import Verdict

__all__ = ["collect", "html_of_measurements", "render"]


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


def html_of_measurements(
    measurements: Sequence[Measurement],
    comparisons: Sequence[Comparison] = (),
    *,
    title: str = "",
    command: str = "",
    verdict: Verdict | None = None,
) -> str:
    """Return the HTML report of measurements without a run folder, as one self-contained document.

    Args:
        measurements: of one model or several, under any scenarios and batches; the first label is what the others
            are held against.
        comparisons: as ``interleave`` returned them, in that order; without them there is no ratio.
        title: of the page; the labels where empty.
        command: that made them, shown at the foot.
        verdict: what ``compare`` said of limits; its checks are shown.

    Raises:
        DataError: no measurement was given.
    """
    from mint_deploy.report.bare import body_of
    from mint_deploy.report.html import page_of_measurements

    return page_of_measurements(
        body_of(measurements, comparisons, title=title, command=command, verdict=verdict)
    )
