"""What the doctor's table and picture show of a network: layers, pruning groups, and who joins whom.

The value alone, in the standard library: :mod:`mint_deploy.survey` makes it from a traced network,
:mod:`mint_deploy.report.dependency` draws it, and :mod:`mint_deploy.files` makes it JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from mint_deploy.artifacts import TensorSpec

__all__ = ["STATUSES", "Overview", "Share", "SurveyedGroup", "SurveyedLayer"]

#: ``restricted``: it can be cut, but a statistic over channels then runs over those that stay
STATUSES = ("cuttable", "restricted", "frozen")

#: ``(position in Overview.groups, channels)``
Share = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedLayer:
    """One Conv or Linear, in the order in which they ran; MACs are for one sample.

    ``makes`` says whose the ``width`` output channels are, in their order, and ``reads`` whose the input
    channels are (of a grouped convolution: those of one of its groups).
    """

    name: str
    kind: str
    width: int
    macs: int
    params: int
    makes: tuple[Share, ...]
    reads: tuple[Share, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedGroup:
    """A pruning group: ``width`` units that leave one by one, each from all of its tensors at once.

    ``layers`` and ``readers`` are positions in ``Overview.layers``: whose outputs the units are, and who
    reads them. ``step`` and ``least``: the widths that a plan for the target may choose, multiples of
    ``step`` from ``least`` up. ``macs`` and ``params`` are what lies in the group's own slices; slices that two
    groups share count for both. ``reason``: why it is frozen or restricted.
    """

    name: str
    width: int
    status: str
    reason: str
    layers: tuple[int, ...]
    readers: tuple[int, ...]
    step: int
    least: int
    macs: int
    params: int

    @property
    def widths(self) -> int:
        """How many widths below the whole one a plan may choose."""
        return 0 if self.status == "frozen" else len(range(self.least, self.width, self.step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A network as a whole. ``cuttable_macs_share``: of the layers that some free group enters."""

    model: str
    target: str
    round_to: int
    macs: int
    params: int
    cuttable_macs_share: float
    probed: bool
    inputs: tuple[TensorSpec, ...]
    layers: tuple[SurveyedLayer, ...]
    groups: tuple[SurveyedGroup, ...]
    notes: tuple[str, ...] = ()

    def of_status(self, status: str) -> tuple[SurveyedGroup, ...]:
        """Return the groups of one of ``STATUSES``."""
        return tuple(g for g in self.groups if g.status == status)
