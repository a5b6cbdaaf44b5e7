"""github-action-benchmark, ``tool: customBiggerIsBetter``: today's throughput."""

from __future__ import annotations

from mint_deploy.report.formats import Judged
from mint_deploy.report.formats.github_action import written

__all__ = ["text"]


def text(judged: Judged) -> str:
    """Return the figures of the new side that are better when larger."""
    return written(judged, larger=True)
