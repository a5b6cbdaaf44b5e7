"""Which units stay, and where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from mint_deploy.values.basic import Cost, TensorSpec
from mint_deploy.values.scoring import Ints

__all__ = [
    "Constant",
    "Member",
    "PlanGroup",
    "PlanLayer",
    "Positions",
    "PruningPlan",
    "ScaleFold",
    "Statistic",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Where the units of a group live in one dimension of one parameter or buffer.

    ``index`` is ``[units, m]``: row ``u`` lists the ``m`` indices along ``dim`` that leave with unit
    ``u``; ``length`` is the full length of that dimension before the cut. ``reads``: the slices are a
    layer's input side, so that zeroing them masks the unit.
    """

    tensor: str
    dim: int
    length: int
    index: Ints
    reads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A whole number in a module's attribute that counts units, so it changes with the cut.

    ``attribute`` is ``module.path.name``, or ``module.path.name[2]`` for an entry of a tuple or list.
    Its new value is ``value`` less ``factor`` times the units removed in ``of``
    (``(group name, units of it that are counted)``).
    """

    attribute: str
    value: int
    of: tuple[tuple[str, tuple[int, ...]], ...]
    factor: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Where the units of a group lie along an axis of an activation; ``index`` is ``[units, m]``."""

    group: str
    index: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A place where the network computes over channels: after a cut, over those that stay.

    ``op`` is the operator's name in ATen, ``call`` counts its calls from 0, ``axis`` (negative) is the
    axis of its first operand along which ``length`` channels lie. Removing a unit is not the same
    as zeroing it there: a mean, a softmax or a product over channels changes.
    """

    op: str
    call: int
    axis: int
    length: int
    of: tuple[Positions, ...]
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFold:
    """The scale of attention follows from the head width, so a narrower head asks for a factor.

    The rows of ``tensor`` along dimension 0 that ``rows`` lists (those that stay) are multiplied by
    ``sqrt(width left / width before)``; ``positions`` says whose units the head's width is made of.
    """

    tensor: str
    rows: tuple[int, ...]
    width: int
    positions: tuple[Positions, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGroup:
    """One pruning group: ``keep`` is sorted; ``members`` say which slices each unit owns."""

    name: str
    size: int
    keep: tuple[int, ...]
    round_to: int
    members: tuple[Member, ...]

    @property
    def removed(self) -> tuple[int, ...]:
        """The units that leave."""
        kept = set(self.keep)
        return tuple(u for u in range(self.size) if u not in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLayer:
    """A layer before the cut: the ``shape`` of its weight, and its multiply-adds for one sample."""

    weight: str
    kind: str
    shape: tuple[int, ...]
    out_dim: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """Which units stay, in every group; enough to replay the cut on a fresh copy of the model.

    ``costed`` is the digest that ``after`` belongs to, ``structure`` a hash over all that is not to be
    edited by hand (see :mod:`mint_deploy.plan_file`); both may be empty.
    """

    model: str
    groups: tuple[PlanGroup, ...]
    constants: tuple[Constant, ...]
    frozen: Mapping[str, str]
    before: Cost
    after: Cost
    criterion: str
    estimator: str | None
    budget: Mapping[str, float]
    target: str
    seed: int
    inputs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    folds: tuple[ScaleFold, ...] = ()
    layers: tuple[PlanLayer, ...] = ()
    costed: str = ""
    structure: str = ""

    @property
    def restricted(self) -> frozenset[str]:
        """Names of the groups that a statistic over channels crosses: cut, they are not as if zeroed."""
        return frozenset(p.group for s in self.statistics for p in s.of)

    def slices(self, model: object = None) -> dict[str, dict[int, list[int]]]:  # noqa: ARG002  # symmetry
        """Return ``{parameter name: {dim: sorted removed indices}}``.

        ``model`` may be given for symmetry with the other verbs; the plan itself knows the slices.
        """
        out: dict[str, dict[int, list[int]]] = {}
        for group in self.groups:
            removed = list(group.removed)
            if not removed:
                continue
            for member in group.members:
                gone = member.index[removed].reshape(-1).tolist()
                out.setdefault(member.tensor, {}).setdefault(member.dim, []).extend(gone)
        return {name: {d: sorted(i) for d, i in sorted(dims.items())} for name, dims in out.items()}

    def digest(self) -> str:
        """Return a hash of what is kept: equal for equal cuts, whatever chose them."""
        body = [[g.name, g.size, list(g.keep)] for g in self.groups]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()
