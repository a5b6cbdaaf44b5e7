"""One architecture through the engine, and the result crossed by :mod:`conformance.absent`."""

from __future__ import annotations

import copy
import resource
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mint_deploy as md
from conformance.absent import (
    Mismatch,
    Removed,
    macs,
    outputs,
    reference,
    relative_error,
    tensors_of,
)
from conformance.catalogue import SEED, Case, build
from mint_deploy.errors import MintDeployError
from mint_deploy.verify import prove

#: exact cuts were measured at 1e-12 and below in float64
TOLERANCE = 1e-8
#: a control that is wrong on purpose must be off by this factor more
SEEN = 100.0
#: other random plans are tried where the cut network computes a constant (all its ReLUs silent, say)
PLANS = 4
#: frozen whatever one does: the input's and the output's channels belong to the user
INEVITABLE = ("reaches the network's output", "meets the network's input", "a single unit")


class Clock:
    """Wall-clock and processor seconds of named steps."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def __call__(self, name: str, work: Any) -> Any:
        """Run ``work()`` and note its seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return work()
        finally:
            self.wall[name] = round(time.perf_counter() - wall, 3)
            self.cpu[name] = round(time.process_time() - cpu, 3)


def examine(case: Case) -> dict[str, Any]:
    """Build, trace, plan about half of the units of every group at random, cut, prove and cross."""
    model, inputs = build(case)
    row: dict[str, Any] = {
        "params": sum(p.numel() for p in model.parameters()),
        "inputs": [list(x.shape) for x in inputs],
    }
    clock = Clock()
    before = resident_bytes()
    try:
        row |= engine(model, inputs, clock)
    except MintDeployError as error:
        row |= {"verdict": "refused", "error": f"{type(error).__name__}: {error}"[:2000]}
    row["seconds"], row["cpu_seconds"] = clock.wall, clock.cpu
    row.setdefault("peak_rss_mb", peak_mb())
    row["rss_before_mb"] = round(before / 2**20)
    return row


def engine(model: nn.Module, inputs: tuple[Tensor, ...], clock: Clock) -> dict[str, Any]:
    """Run the engine's stages and the crossing; return what the table needs."""
    graph = clock("trace", lambda: md.trace(model, inputs))
    row = described(graph)
    if not graph.groups:
        return row | {"verdict": "nothing to cut"}
    for seed in range(SEED, SEED + PLANS):
        scores = md.score(graph, criterion="random", seed=seed)
        plan = clock("plan", lambda s=scores: md.plan(graph, s, ratio=0.5, round_to=1))
        clock("cut", lambda p=plan: md.cut(model, p))
        slim, plan, proof = clock("gate", lambda p=plan: prove(model, p, inputs))
        back = {n: g.reason for n, g in proof.groups.items() if g.status == "rolled back"}
        row |= {
            "plan_seed": seed,
            "max_error": proof.max_error,
            "least_power": proof.least_power,
            "sampled": proof.sampled,
            "rolled_back": back,
            "peak_rss_mb": peak_mb(),
            "macs_kept_plan": round(plan.after.macs / max(1, plan.before.macs), 4),
            "params_kept": round(plan.after.params / max(1, plan.before.params), 4),
            "macs_kept": round(macs(slim, inputs) / max(1, macs(model, inputs)), 4),
        }
        row |= crossing(model, slim, plan.slices(), inputs)
        if row["verdict"] != "no power":
            break
    if row["verdict"] == "exact" and (row["avoidable"] or back):
        row["verdict"] = "exact, rest frozen"
    return row


def described(graph: Any) -> dict[str, Any]:
    """What the graph says: groups, what is frozen and why, the cuttable share."""
    why = {n: r for n, r in graph.frozen.items() if not r.startswith(INEVITABLE)}
    counted = Counter(reason.split(" (in ")[0] for reason in why.values())
    return {
        "groups": len(graph.groups),
        "frozen_groups": len(graph.frozen),
        "avoidable": len(why),
        "reasons": counted.most_common(3),
        "frozen": why,
        "restricted": sum(bool(g.restricted) for g in graph.groups.values()),
        "cuttable": round(graph.cuttable_macs_share, 4),
        "notes": list(graph.notes),
    }


def crossing(
    model: nn.Module, slim: nn.Module, removed: Removed, inputs: Sequence[Tensor]
) -> dict[str, Any]:
    """Compare with the independent reference, and show that the comparison sees a wrong cut."""
    try:
        found = outputs(slim, inputs)
        wanted = reference(model, removed, inputs)
    except Mismatch as problem:
        return {"verdict": "WRONG", "error": f"crossing: {problem}"}
    error = relative_error(found, wanted)
    seen = control(slim, removed, tensors_of(model), inputs, wanted)
    if not error <= TOLERANCE:
        verdict, text = "WRONG", f"crossing: off by {error:.3g}"
    elif not seen >= SEEN * TOLERANCE:
        verdict, text = "no power", f"crossing: a wrong cut is off by {seen:.3g} only"
    else:
        verdict, text = "exact", ""
    made = {"verdict": verdict, "crossing": error, "control": seen}
    return made | ({"error": text} if text else {})


def control(
    slim: nn.Module,
    removed: Removed,
    dense: dict[str, Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    tries: int = 32,
) -> float:
    """Return how far a cut is off in which one tensor keeps one wrong channel in place of a right one.

    Of several, chosen at random: the first that is seen, or the largest.
    """
    random = np.random.default_rng(SEED)
    places = [
        (name, dim)
        for name, dims in sorted(removed.items())
        for dim, gone in dims.items()
        if len(set(gone)) < dense[name].shape[dim] and dense[name].is_floating_point()
    ]
    most = 0.0
    order = random.permutation(len(places))
    for attempt in range(tries if places else 0):
        name, dim = places[order[attempt % len(places)]]
        wrong = copy.deepcopy(slim).double()
        gone = sorted(set(removed[name][dim]))
        stays = [i for i in range(dense[name].shape[dim]) if i not in set(gone)]
        source = dense[name].detach().double()
        for other, indices in removed[name].items():
            if other != dim:
                left = [i for i in range(source.shape[other]) if i not in set(indices)]
                source = source.index_select(other, torch.as_tensor(left))
        at = int(random.integers(len(stays)))
        with torch.no_grad():
            target = tensors_of(wrong)[name]
            target.select(dim, at).copy_(source.select(dim, int(random.choice(gone))))
        most = max(most, relative_error(outputs(wrong, inputs), wanted))
        if most >= SEEN * TOLERANCE:
            break
    return most


def peak_mb() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def resident_bytes() -> int:
    """Return the resident size of this process now (Linux; elsewhere its peak)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mb() * 2**20
    return int(statm.read_text().split()[1]) * resource.getpagesize()
