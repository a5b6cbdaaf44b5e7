"""Two cuts in one: a slim model was cut again, and one plan says both, on the original.

``compose(first, second)`` returns the plan for which ``cut(model, composed)`` equals
``cut(cut(model, first), second)``, bit for bit (a head that was narrowed twice: to rounding, its scale
is folded once instead of twice). The units of the first plan stay the units. What only the second
plan could cut becomes groups of its own; what it cuts through the middle of a unit is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import (
    Constant,
    Member,
    PlanGroup,
    Positions,
    PruningPlan,
    ScaleFold,
    Statistic,
)
from mint_deploy.errors import PlanError
from mint_deploy.plan_file import faults_of, listing, sealed

__all__ = ["compose"]

Place = tuple[str, int]
Mask = npt.NDArray[np.bool_]


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """Return one plan on the original model that equals both cuts.

    Args:
        first: the plan that cut the original.
        second: a plan made for the model that ``first`` left.

    Raises:
        PlanError: ``second`` belongs to another model than what ``first`` leaves (what differs is
            listed), or removes only a part of a unit of ``first``.
    """
    for plan in (first, second):
        if faults := faults_of(plan):
            raise PlanError(f"a plan to be composed cannot be carried out: {listing(faults)}")
    places = _Places(first)
    _check_fits(first, second, places)
    left = {g.name: set(g.keep) for g in first.groups}
    gone = places.to_original(second.slices())
    for group in first.groups:
        left[group.name] -= set(_removed_units(group, gone))
    groups = [_narrowed(g, left[g.name]) for g in first.groups]
    own = dict(_groups_of_its_own(second, places, {g.name for g in first.groups}))
    groups += own.values()
    constants = _constants(first, second, places, {h: g.name for h, g in own.items()}, groups)
    return sealed(
        dataclasses.replace(
            first,
            groups=tuple(groups),
            constants=constants,
            frozen=_frozen(first, second, groups),
            after=second.after,
            criterion=first.criterion
            if first.criterion == second.criterion
            else f"{first.criterion}, then {second.criterion}",
            estimator=second.estimator,
            budget={},
            target=second.target,
            seed=second.seed,
            notes=tuple(dict.fromkeys((*first.notes, *second.notes, _told(first, second)))),
            statistics=(*first.statistics, *_statistics(first, second, own)),
            folds=(*first.folds, *_folds(second, own, places)),
            layers=first.layers,
        )
    )


def _told(first: PruningPlan, second: PruningPlan) -> str:
    parts = [
        f"{p.criterion} ({', '.join(f'{k} {v:g}' for k, v in p.budget.items()) or 'no budget'})"
        for p in (first, second)
    ]
    return f"two cuts in one: {parts[0]}, then of what was left {parts[1]}"


# ---------------------------------------------------------------- where what is left came from


class _Places:
    """For every tensor and dimension that the first plan knows: which original indices stay."""

    def __init__(self, plan: PruningPlan) -> None:
        self.lengths = {(m.tensor, m.dim): m.length for g in plan.groups for m in g.members}
        self.owned: dict[Place, Mask] = {
            p: np.zeros(n, dtype=bool) for p, n in self.lengths.items()
        }
        self.stays: dict[Place, Mask] = {p: np.ones(n, dtype=bool) for p, n in self.lengths.items()}
        for group in plan.groups:
            for member in group.members:
                place = (member.tensor, member.dim)
                self.owned[place][member.index.reshape(-1)] = True
                self.stays[place][member.index[list(group.removed)].reshape(-1)] = False

    def original(self, place: Place, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where indices of the slim model were in the original."""
        if place not in self.stays:
            return index
        found: npt.NDArray[np.int64] = np.flatnonzero(self.stays[place])[index]
        return found

    def to_original(self, slices: Mapping[str, Mapping[int, list[int]]]) -> dict[Place, Mask]:
        """Return which original indices go, where the first plan has units."""
        gone = {p: np.zeros(n, dtype=bool) for p, n in self.lengths.items()}
        for tensor, dims in slices.items():
            for dim, index in dims.items():
                if (tensor, dim) in gone:
                    where = self.original((tensor, dim), np.asarray(index, dtype=np.int64))
                    gone[tensor, dim][where] = True
        return gone

    def inside(self, place: Place, index: npt.NDArray[np.int64]) -> Mask:
        """Return which original indices belong to units of the first plan."""
        if place not in self.owned:
            return np.zeros(index.shape, dtype=bool)
        found: Mask = self.owned[place][index]
        return found


def _check_fits(first: PruningPlan, second: PruningPlan, places: _Places) -> None:
    wrong = []
    for member in (m for g in second.groups for m in g.members):
        place = (member.tensor, member.dim)
        if place in places.stays and int(places.stays[place].sum()) != member.length:
            wrong.append(
                f"the first plan leaves {int(places.stays[place].sum())} along dimension {member.dim} of "
                f"'{member.tensor}', the second expects {member.length}"
            )
    known = {layer.weight for layer in first.layers}
    if known:
        wrong += [
            f"the second plan has a layer '{layer.weight}', the first has not"
            for layer in second.layers
            if layer.weight not in known
        ]
    if wrong:
        raise PlanError(
            f"the second plan was not made for what the first leaves of '{first.model}': {listing(wrong)}; "
            "trace the cut model, and plan anew"
        )


# ---------------------------------------------------------------- groups


def _removed_units(group: PlanGroup, gone: Mapping[Place, Mask]) -> Iterator[int]:
    """Yield the kept units of a group of the first plan that the second removes.

    Raises:
        PlanError: it removes some slices of a unit, and not others.
    """
    counts = np.zeros((group.size, 2), dtype=np.int64)
    for member in group.members:
        hit = gone[member.tensor, member.dim][member.index]
        counts[:, 0] += hit.sum(axis=1)
        counts[:, 1] += member.index.shape[1]
    for unit in group.keep:
        removed, slices = counts[unit]
        if 0 < removed < slices:
            raise PlanError(
                f"the second plan removes {removed} of the {slices} slices of unit {unit} of group "
                f"'{group.name}', which leave together on the original; keep both plans, one after the other"
            )
        if removed:
            yield unit


def _narrowed(group: PlanGroup, left: Iterable[int]) -> PlanGroup:
    keep = tuple(sorted(left))
    step = group.round_to if len(keep) % group.round_to == 0 else 1
    return dataclasses.replace(
        group, keep=keep, round_to=group.round_to if len(keep) == group.size else step
    )


def _groups_of_its_own(
    second: PruningPlan, places: _Places, taken: set[str]
) -> Iterator[tuple[str, PlanGroup]]:
    """Yield, by their name in the second plan, the slices that only it could cut, as groups."""
    for group in second.groups:
        members = [m for member in group.members for m in _outside(group, member, places)]
        if members and group.removed:
            name, number = group.name, 2
            while name in taken:
                name, number = f"{group.name}#{number}", number + 1
            taken.add(name)
            yield group.name, dataclasses.replace(group, name=name, members=tuple(members))


def _outside(group: PlanGroup, member: Member, places: _Places) -> Iterator[Member]:
    """Yield what of a member of the second plan lies in no unit of the first, in original indices."""
    place = (member.tensor, member.dim)
    index = places.original(place, member.index)
    outside = ~places.inside(place, index)
    counts = outside.sum(axis=1)
    if not counts.any():
        return
    if len(set(counts.tolist())) > 1:
        raise PlanError(
            f"group '{group.name}' of the second plan has units with unlike shares in '{member.tensor}', "
            "seen from the original; keep both plans, one after the other"
        )
    yield dataclasses.replace(
        member,
        length=places.lengths.get(place, member.length),
        index=index[outside].reshape(len(index), -1),
    )


def _frozen(first: PruningPlan, second: PruningPlan, groups: Iterable[PlanGroup]) -> dict[str, str]:
    free = {g.name for g in groups}
    both = {**first.frozen, **second.frozen}
    return {name: why for name, why in both.items() if name not in free}


# ---------------------------------------------------------------- numbers that count units


@dataclass(frozen=True)
class _Chain:
    """A constant through both plans."""

    before: int
    after: int


def _value(constant: Constant, groups: Mapping[str, PlanGroup]) -> int:
    """The value that a constant gets from a plan."""
    gone = sum(
        len(set(groups[name].removed) & set(units)) for name, units in constant.of if name in groups
    )
    return constant.value - constant.factor * gone


def _constants(
    first: PruningPlan,
    second: PruningPlan,
    places: _Places,
    own: Mapping[str, str],
    groups: Iterable[PlanGroup],
) -> tuple[Constant, ...]:
    """Return the constants in terms of the composed groups, with the values that both cuts give.

    Raises:
        PlanError: the second plan expects another value than the first leaves, or one counts what the other
            does not.
    """
    firsts = {g.name: g for g in first.groups}
    seconds = {g.name: g for g in second.groups}
    composed = {g.name: g for g in groups}
    chains = {c.attribute: _Chain(c.value, _value(c, firsts)) for c in first.constants}
    by_first = {c.attribute: c for c in first.constants}
    by_second = {c.attribute: c for c in second.constants}
    for name, constant in by_second.items():
        known = chains.get(name)
        if known is not None and known.after != constant.value:
            raise PlanError(
                f"the first plan leaves '{name}' at {known.after}, the second expects {constant.value}; it was "
                "not made for what the first leaves"
            )
        chains[name] = _Chain(known.before if known else constant.value, _value(constant, seconds))
    units = _Units(first, second, places, own)
    made = []
    for name, chain in chains.items():
        found = by_first.get(name) or units.translated(by_second[name])
        if _value(found, composed) != chain.after and name in by_first and name in by_second:
            found = units.joined(by_first[name], by_second[name])
        if _value(found, composed) != chain.after:
            raise PlanError(
                f"'{name}' becomes {chain.after} by both plans, and {_value(found, composed)} by one; keep both "
                "plans, one after the other"
            )
        made.append(found)
    return tuple(made)


class _Units:
    """Which composed unit a unit of the second plan is."""

    def __init__(
        self, first: PruningPlan, second: PruningPlan, places: _Places, own: Mapping[str, str]
    ) -> None:
        self.own, self.places = own, places
        self.seconds = {g.name: g for g in second.groups}
        self.at: dict[Place, dict[int, tuple[str, int]]] = {}
        for group in first.groups:
            for member in group.members:
                held = self.at.setdefault((member.tensor, member.dim), {})
                for unit, row in enumerate(member.index.tolist()):
                    held.update(dict.fromkeys(row, (group.name, unit)))

    def _of(self, name: str, unit: int) -> tuple[str, int]:
        for member in self.seconds[name].members:
            place = (member.tensor, member.dim)
            where = self.places.original(place, member.index[unit])
            for index in where.tolist():
                if index in self.at.get(place, {}):
                    return self.at[place][index]
        return self.own.get(name, name), unit

    def translated(self, constant: Constant) -> Constant:
        """Return a constant of the second plan in terms of the composed groups."""
        return dataclasses.replace(constant, of=self._counted(constant))

    def joined(self, first: Constant, second: Constant) -> Constant:
        """Return a constant that both plans rewrite, counting what either does."""
        of: dict[str, set[int]] = {}
        for name, units in (*first.of, *self._counted(second)):
            of.setdefault(name, set()).update(units)
        return dataclasses.replace(first, of=tuple((n, tuple(sorted(u))) for n, u in of.items()))

    def _counted(self, constant: Constant) -> tuple[tuple[str, tuple[int, ...]], ...]:
        of: dict[str, set[int]] = {}
        for name, units in constant.of:
            for unit in units:
                group, found = self._of(name, unit)
                of.setdefault(group, set()).add(found)
        return tuple((n, tuple(sorted(u))) for n, u in of.items())


# ---------------------------------------------------------------- what the groups of its own cross


def _statistics(
    first: PruningPlan, second: PruningPlan, own: Mapping[str, PlanGroup]
) -> Iterator[Statistic]:
    """Yield where groups of its own cross a statistic; the first plan's units do not lie there."""
    known = {(s.op, s.call, s.axis) for s in first.statistics}
    for s in second.statistics:
        mine = tuple(
            Positions(group=own[p.group].name, index=p.index) for p in s.of if p.group in own
        )
        if not mine:
            continue
        if (s.op, s.call, s.axis) in known:
            raise PlanError(
                f"groups of both plans cross '{s.op}' {s.where}; keep both plans, one after the other"
            )
        yield dataclasses.replace(s, of=mine)


def _folds(
    second: PruningPlan, own: Mapping[str, PlanGroup], places: _Places
) -> Iterator[ScaleFold]:
    """Yield the scales that only groups of its own change."""
    for fold in second.folds:
        mine = tuple(
            Positions(group=own[p.group].name, index=p.index)
            for p in fold.positions
            if p.group in own
        )
        if mine:
            rows = places.original((fold.tensor, 0), np.asarray(fold.rows, dtype=np.int64))
            yield dataclasses.replace(fold, rows=tuple(rows.tolist()), positions=mine)
