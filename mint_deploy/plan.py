"""From scores and a budget to a plan: how wide every group becomes, and which units stay.

Widths are chosen, never left over: multiples of the target's ``round_to`` (a group narrower than four
such steps takes half the step until it has four widths; the plan names those). Within a group the units leave
in the criterion's order, down to the number that the criterion protects (``GroupImportance.least``, rounded up to
a possible width). How the budget is shared between groups is the *allocation*:

``uniform``
    every group loses the same share, then widths are given back where the criterion regrets most.
``global``
    steps are taken one by one, always the one that loses least per multiply-add (or parameter) saved.
``auto`` (the default)
    ``global`` where the criterion says that its losses can be compared between groups, else ``uniform``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch

import numpy as np

from mint_deploy.artifacts import Importance, PruningPlan
from mint_deploy.errors import PlanError
from mint_deploy.graph import Graph
from mint_deploy.plan_file import make_plan
from mint_deploy.target import Target, load_target

__all__ = ["ALLOCATIONS", "make_plan", "plan", "possible_widths"]

ALLOCATIONS = ("auto", "uniform", "global")
#: a group keeps at least this share of its units, whatever the budget
LEAST_KEPT = 0.1


def plan(
    graph: Graph,
    scores: Importance,
    *,
    target: str | Target = "cpu",
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    ignore: Sequence[str] = (),
    round_to: int | None = None,
    least_kept: float = LEAST_KEPT,
    allocation: str = "auto",
    at_most: Mapping[str, int] | None = None,
    model: str = "",
) -> PruningPlan:
    """Choose what stays in every group.

    Args:
        graph: from :func:`mint_deploy.trace`.
        scores: from :func:`mint_deploy.score`.
        target: its ``round_to`` decides which widths are possible.
        ratio: fraction of the units REMOVED from every group; or
        macs: fraction of the multiply-adds KEPT; or
        params: fraction of the parameters KEPT. Exactly one of the three.
        ignore: layers (names or patterns such as ``layer1.*``) whose groups stay whole.
        round_to: overrides the target's.
        least_kept: every group keeps at least this share of its units (0 to 1).
        allocation: ``auto``, ``uniform`` or ``global``, see above; ``ratio`` is always uniform.
        at_most: widths from which groups start, whatever the budget (see :mod:`mint_deploy.lossless`).
        model: name to be written into the plan.

    Raises:
        PlanError: no or several budgets, a fraction outside (0, 1], a budget out of reach (the error
            carries the nearest reachable one and what holds it back), or an unknown layer to ignore.
    """
    chip = load_target(target) if isinstance(target, str) else target
    budgets = {"ratio": ratio, "macs": macs, "params": params}
    given = {name: _number(name, v) for name, v in budgets.items() if v is not None}
    if len(given) != 1:
        raise PlanError(
            f"give exactly one budget of ratio, macs, params; found {', '.join(given) or 'none'}"
        )
    kind, amount = next(iter(given.items()))
    low_ok = 0 <= amount < 1 if kind == "ratio" else 0 < amount <= 1
    if not low_ok:
        meaning = "removed, from 0 to below 1" if kind == "ratio" else "kept, above 0 up to 1"
        raise PlanError(f"{kind}={amount:g} is not a fraction; expected the fraction {meaning}")
    if round_to is not None and not round_to >= 1:
        raise PlanError(f"round_to={round_to} is no step between widths; expected 1 or more")
    if allocation not in ALLOCATIONS:
        raise PlanError(f"no allocation '{allocation}'; known: {', '.join(ALLOCATIONS)}")
    if not graph.groups:
        reasons = "; ".join(f"{n}: {why}" for n, why in list(graph.frozen.items())[:5])
        raise PlanError(f"nothing in this model can be cut: {reasons}")
    ladder = _Ladder(graph, scores, round_to or chip.round_to, ignore, least_kept, at_most or {})
    if kind == "ratio":
        widths = ladder.uniform(amount)
    else:
        full, cost = graph.cost, _cost_of(graph, kind)
        limit = amount * getattr(full, kind)
        ladder.must_reach(kind, amount, cost)
        widths = (
            ladder.shared(cost, limit)
            if allocation == "uniform" or (allocation == "auto" and not scores.comparable)
            else ladder.greedy(cost, limit)
        )
    return make_plan(
        graph,
        {name: ladder.kept(name, width) for name, width in widths.items()},
        steps=ladder.steps,
        model=model,
        criterion=scores.criterion,
        estimator=scores.estimator,
        budget=given,
        target=chip.name,
        seed=scores.seed,
        notes=ladder.notes,
    )


def possible_widths(
    size: int, round_to: int, least_kept: float = LEAST_KEPT
) -> tuple[int, list[int]]:
    """Return the step between the widths that a group may take, and those widths, widest first."""
    step = max(1, int(round_to))
    while step > 1 and size < 4 * step:
        step //= 2
    least = max(step, int(np.ceil(least_kept * size / step)) * step)
    return step, [size, *range((size - 1) // step * step, least - 1, -step)]


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # whatever was given
    except (TypeError, ValueError):
        raise PlanError(f"{name}={value!r} is not a number; expected a fraction") from None


Widths = dict[str, int]
CostOf = Callable[[Widths], float]


def _cost_of(graph: Graph, kind: str) -> CostOf:
    """Return the function from widths to multiply-adds or parameters (one pass over arrays)."""
    if kind == "macs":
        weight = {n: layer.positions / graph.batch for n, layer in graph.layers.items()}
    else:
        weight = dict.fromkeys(sorted(graph.parameters & graph.shapes.keys()), 1.0)
    row = {name: i for i, name in enumerate(weight)}
    rank = max((len(graph.shapes[n]) for n in weight), default=0) or 1
    sizes = np.ones((len(weight), rank))
    for name, i in row.items():
        sizes[i, : len(graph.shapes[name])] = graph.shapes[name]
    column = {name: i for i, name in enumerate(graph.groups)}
    owned = [
        (row[m.tensor] * rank + m.dim, column[name], m.index.shape[1])
        for name, group in graph.groups.items()
        for m in group.members
        if m.tensor in row
    ]
    place, group_of, slices = np.array(owned, dtype=np.int64).reshape(-1, 3).T
    full = np.array([g.size for g in graph.groups.values()])
    factor = np.array(list(weight.values()))

    def cost(widths: Widths) -> float:
        gone = np.zeros(len(full))
        for name, width in widths.items():
            gone[column[name]] = full[column[name]] - width
        lost = np.bincount(place, weights=slices * gone[group_of], minlength=sizes.size)
        return float(factor @ (sizes - lost.reshape(sizes.shape)).prod(axis=1))

    return cost


class _Ladder:
    """The widths that each group may take, and what each step down loses."""

    def __init__(
        self,
        graph: Graph,
        scores: Importance,
        round_to: int,
        ignore: Sequence[str],
        least_kept: float,
        at_most: Mapping[str, int],
    ) -> None:
        self.graph, self.scores, self.notes = graph, scores, list[str]()
        self.steps: dict[str, int] = {}
        self.rungs: dict[str, list[int]] = {}
        self.protected: set[str] = set()
        ignored = _ignored(graph, ignore)
        narrow: dict[int, list[str]] = {}
        for name, group in graph.groups.items():
            step, rungs = possible_widths(group.size, round_to, least_kept)
            self.steps[name] = step
            if step < round_to:
                narrow.setdefault(step, []).append(name)
            if name in ignored or name not in scores.groups:
                self.rungs[name] = [group.size]
                if name not in ignored:
                    self.notes.append(f"'{name}' stays whole: the criterion has no evidence on it")
                continue
            least = min(scores.groups[name].least, group.size)
            if rungs[-1] < least:
                self.protected.add(name)
                rungs = [width for width in rungs if width >= least]
            start = max(min(at_most.get(name, group.size), group.size), rungs[-1])
            self.rungs[name] = [width for width in rungs if width <= start]
        for step, names in sorted(narrow.items()):
            listed = ", ".join(names[:4]) + (
                f" and {len(names) - 4} more" if len(names) > 4 else ""
            )
            self.notes.append(
                f"narrower than 4 x {round_to}, so cut in steps of {step}, which may give no speed: "
                + listed
            )
        self.ignored = ignored

    def kept(self, name: str, width: int) -> list[int]:
        """The units that stay at a width: the last ones in the elimination order."""
        if name not in self.scores.groups:
            return list(range(self.graph.groups[name].size))
        order = self.scores.groups[name].order
        return [int(u) for u in order[len(order) - width :]]

    def uniform(self, removed: float) -> Widths:
        """The rung nearest to the same share everywhere."""
        return {
            name: min(
                rungs, key=lambda w: (abs(w - (1 - removed) * self.graph.groups[name].size), -w)
            )
            for name, rungs in self.rungs.items()
        }

    def must_reach(self, kind: str, amount: float, cost: CostOf) -> None:
        """Refuse a budget below what the narrowest widths cost."""
        least = {name: rungs[-1] for name, rungs in self.rungs.items()}
        total = cost({})
        nearest = cost(least) / total
        if nearest <= amount:
            return
        held = self._holders(kind, least)
        raise PlanError(
            f"{kind} {amount:g} is out of reach: the nearest is {math.ceil(nearest * 1000) / 1000:.3f} of "
            f"the {kind}; held back by " + "; ".join(held),
            nearest=nearest,
            held_by=held,
        )

    def _holders(self, kind: str, widths: Widths) -> list[str]:
        keep = {name: range(width) for name, width in widths.items()}
        sizes = self.graph.sizes(keep)
        macs = self.graph.layer_macs(sizes)
        if kind == "params":
            macs = {w: int(np.prod(sizes[w], dtype=np.int64)) for w in self.graph.layers}
        total = max(1, sum(macs.values()))
        held = []
        for weight in sorted(macs, key=lambda w: -macs[w])[:3]:
            layer = self.graph.layers[weight].name
            why = self._why(weight)
            held.append(f"{layer} ({macs[weight] / total:.0%} of what is left, {why})")
        return held

    def _why(self, weight: str) -> str:
        for name, group in self.graph.frozen_groups.items():
            if weight in group.producers:
                return f"frozen: {self.graph.frozen[name]}"
        for name, group in self.graph.groups.items():
            if weight in group.producers and name in self.ignored:
                return "ignored"
            if weight in group.producers and name not in self.scores.groups:
                return "no evidence"
            if weight in group.producers and name in self.protected:
                return "protected by the criterion"
        return "at its least width"

    def shared(self, cost: CostOf, limit: float) -> Widths:
        """The same share everywhere, then widths given back while the budget allows."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            if cost(self.uniform(middle)) <= limit:
                high = middle
            else:
                low = middle
        return self._given_back(self.uniform(high), cost, limit, evenly=True)

    def _given_back(
        self, widths: Widths, cost: CostOf, limit: float, *, evenly: bool = False
    ) -> Widths:
        """Widen again while the budget allows: coarse steps overshoot, and nothing is left unused.

        First comes what is regretted most for what it costs; ``evenly``: what has the least share left.
        """
        while True:
            now, offers = cost(widths), []
            for name, rungs in self.rungs.items():
                at = rungs.index(widths[name])
                if at:
                    price = cost({**widths, name: rungs[at - 1]}) - now
                    if now + price <= limit:
                        gain = self._loss(name, rungs[at - 1], rungs[at])
                        worth = -widths[name] / rungs[0] if evenly else gain / max(price, 1e-12)
                        offers.append((worth, gain, name, rungs[at - 1]))
            if not offers:
                return widths
            _, _, name, width = max(offers)
            widths = {**widths, name: width}

    def greedy(self, cost: CostOf, limit: float) -> Widths:
        """Always the step down that loses least per unit of cost saved (a lazy heap)."""
        widths = {name: rungs[0] for name, rungs in self.rungs.items()}
        now = cost(widths)
        heap: list[tuple[float, str, int]] = []

        def offer(name: str) -> None:
            rungs = self.rungs[name]
            at = rungs.index(widths[name])
            if at + 1 < len(rungs):
                saved = now - cost({**widths, name: rungs[at + 1]})
                loss = self._loss(name, rungs[at], rungs[at + 1])
                heapq.heappush(heap, (loss / max(saved, 1e-12), name, rungs[at + 1]))

        for name in widths:
            offer(name)
        while now > limit and heap:
            price, name, width = heapq.heappop(heap)
            rungs = self.rungs[name]
            if width >= widths[name]:
                continue
            saved = now - cost({**widths, name: width})
            fresh = self._loss(name, widths[name], width) / max(saved, 1e-12)
            if heap and fresh > heap[0][0] and fresh > price:
                heapq.heappush(heap, (fresh, name, width))
                continue
            widths[name] = width
            now = cost(widths)
            if rungs.index(width) + 1 < len(rungs):
                offer(name)
        return self._given_back(widths, cost, limit)

    def _loss(self, name: str, wide: int, narrow: int) -> float:
        """What is lost between two widths: the losses at elimination of the units in between."""
        found = self.scores.groups[name]
        size = self.graph.groups[name].size
        leaving = found.order[size - wide : size - narrow]
        return float(found.loss[leaving].sum())


def _ignored(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """Groups of which some layer is to be left alone."""
    layers = {layer.name: weight for weight, layer in graph.layers.items()}
    out: set[str] = set()
    for pattern in patterns:
        hits = [n for n in layers if fnmatch(n, pattern) or n.startswith(pattern + ".")]
        if not hits:
            near = get_close_matches(pattern, layers, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise PlanError(
                f"no layer '{pattern}' to ignore{hint} (layers: {', '.join(list(layers)[:5])} ...)"
            )
        weights = {layers[n] for n in hits}
        out.update(
            name
            for name, group in graph.groups.items()
            if weights & {m.tensor for m in group.members if not m.reads}
        )
    return out
