"""What in the method matters: one change at a time, on the validation split, whichever way it falls.

    python benchmarks/scoring_hypotheses.py [--only 'gmi*'] [--budgets 0.4] [--seeds 0]
    python benchmarks/scoring_hypotheses.py --table

Network, images, surgery and repair are those of ``scoring.py`` (ResNet-56, BatchNorm measured anew, then the refit
too); each row changes one thing of the method named first in its block. Rows *at mint's widths* leave the widths
to mint, so that the order within each group is compared alone. Cells are written as they are done.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scoring
import torch
from scoring_table import spread

import mint_deploy as md
from mint_deploy import sensitivity
from mint_deploy.artifacts import ConsumerMoments
from mint_deploy.estimators import gaussian

#: name -> (how units are scored, whether mint says the widths)
Score = Callable[["scoring.Bench", "md.Moments"], "md.Importance"]


def plain(**settings: Any) -> Score:
    """Score with an estimator's settings."""
    return lambda bench, moments: md.score(bench.graph, moments, **settings)


def on(change: Callable[[md.Moments], md.Moments], **settings: Any) -> Score:
    """Score changed moments."""
    return lambda bench, moments: md.score(bench.graph, change(moments), **settings)


def consumers(
    change: Callable[[ConsumerMoments], ConsumerMoments],
) -> Callable[[md.Moments], md.Moments]:
    """Change the moments of every consumer."""
    return lambda moments: dataclasses.replace(
        moments, consumers={n: change(c) for n, c in moments.consumers.items()}, halves=()
    )


def diagonal(c: ConsumerMoments) -> ConsumerMoments:
    """Errors of different outputs do not meet further on."""
    return dataclasses.replace(c, sensitivity=np.diag(np.diag(c.sensitivity)))


def not_greedy(bench: scoring.Bench, moments: md.Moments) -> md.Importance:
    """Every unit is judged given all the others, none of which has left."""

    def at_once(readers: Any, units: int, **settings: Any) -> Any:
        states = gaussian.states_of(readers, units, settings["floor"], settings["noise"])
        loss = np.sum([s.losses(units) for s in states], axis=0)
        return loss, np.argsort(loss, kind="stable")

    with mock.patch.object(gaussian, "eliminate", at_once):
        return md.score(bench.graph, dataclasses.replace(moments, halves=()))


def first_reader(bench: scoring.Bench, moments: md.Moments) -> md.Importance:
    """A residual stream is judged by the first of its consumers alone."""
    whole = gaussian.readers_of

    def first(*given: Any) -> Any:
        return whole(*given)[:1]

    with mock.patch.object(gaussian, "readers_of", first):
        return md.score(bench.graph, dataclasses.replace(moments, halves=()))


def fisher(bench: scoring.Bench, moments: md.Moments) -> md.Importance:
    """The Fisher information of the predicted distribution in the place of the Jacobian (K-FAC's own factor)."""

    def log_likelihood(outputs: list[torch.Tensor], random: torch.Generator) -> torch.Tensor:
        logs = outputs[0].log_softmax(1)
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=random)
        return logs.gather(1, drawn).sum()

    with mock.patch.object(sensitivity, "_projection", log_likelihood):
        train, images = bench.data.train, scoring.IMAGES
        made = md.sample(bench.dense, bench.graph, train, images=images, seed=moments.seed)
    return md.score(bench.graph, dataclasses.replace(made, halves=()))


def backwards(count: int) -> Score:
    """So many images run backwards; the grid's own moments have 1,000, for the sake of the loss's gradients."""

    def score(bench: scoring.Bench, moments: md.Moments) -> md.Importance:
        made = md.sample(
            bench.dense,
            bench.graph,
            bench.data.train,
            images=scoring.IMAGES,
            sensitivity_images=count,
            seed=moments.seed,
        )
        return md.score(bench.graph, dataclasses.replace(made, halves=()))

    return score


def pooled(moments: md.Moments) -> md.Moments:
    """Spatial means in the place of taps: what the published method looks at."""
    made = {}
    for name, c in moments.consumers.items():
        rows = moments.pooled[name].inputs.astype(np.float64)
        weight = np.asarray(c.weight).reshape(len(c.weight), -1, c.taps).sum(2)
        made[name] = dataclasses.replace(
            c,
            taps=1,
            rows=len(rows),
            mean=rows.mean(0),
            covariance=np.cov(rows.T, bias=True).reshape(rows.shape[1], rows.shape[1]),
            weight=weight,
        )
    return dataclasses.replace(moments, consumers=made, halves=())


def normalised(scores: md.Importance) -> md.Importance:
    """Every group's losses sum to one."""
    return dataclasses.replace(
        scores,
        groups={
            n: dataclasses.replace(g, loss=g.loss / max(float(g.loss.sum()), 1e-300))
            for n, g in scores.groups.items()
        },
    )


def by_group(bench: scoring.Bench, moments: md.Moments) -> md.Importance:
    """Compare groups by shares of their own sum."""
    return normalised(md.score(bench.graph, moments))


HYPOTHESES: dict[str, dict[str, tuple[Score, bool]]] = {
    "gaussian": {
        "gaussian: the default": (plain(), False),
        "gaussian: errors of different outputs do not meet": (on(consumers(diagonal)), False),
        "gaussian: Fisher information instead of the Jacobian": (fisher, False),
        "gaussian: 256 images run backwards": (backwards(256), False),
        "gaussian: 128 images run backwards": (backwards(128), False),
        "gaussian: all outputs count the same (variance floor 1e-4)": (
            plain(floor="variance", noise=1e-4), True,
        ),
        "gaussian: variance floor 0.01": (plain(floor="variance", noise=0.01), True),
        "gaussian: variance floor 1": (plain(floor="variance", noise=1.0), True),
        "gaussian: variance floor infinite (plain variance)": (
            plain(floor="variance", noise=float("inf")), True,
        ),
        "gaussian: variance floor infinite, own widths": (
            lambda b, m: dataclasses.replace(
                md.score(b.graph, m, floor="variance", noise=float("inf")), comparable=True
            ),
            False,
        ),
        "gaussian: not greedy, given all others": (not_greedy, True),
        "gaussian: not greedy, own widths": (not_greedy, False),
        "gaussian: the first consumer alone": (first_reader, False),
        "gaussian: spatial means instead of taps": (on(pooled), True),
        "gaussian: groups compared by shares of their sum": (by_group, False),
    },
    "gmi": {
        "gmi: the default (condition pca, times the consumer's weights)": (
            plain(estimator="gmi"), True,
        ),
        "gmi: no condition, times the weights": (
            plain(estimator="gmi", condition="none"), True,
        ),
        "gmi: condition pca, no weights": (plain(estimator="gmi", weighted=False), True),
        "gmi: condition pca, no weights, rows unpaired": (
            plain(estimator="gmi", weighted=False, paired=False), True,
        ),
        "gmi: condition all, no weights (the paper's form)": (
            plain(estimator="gmi", condition="all", weighted=False), True,
        ),
        "gmi: condition all, no weights, rows unpaired (the published code)": (
            plain(estimator="gmi", condition="all", weighted=False, paired=False), True,
        ),
        "gmi: no condition, no weights": (
            plain(estimator="gmi", condition="none", weighted=False), True,
        ),
        "gmi: condition top-k, k = 1, no weights": (
            plain(estimator="gmi", condition="top-k", k=1, weighted=False), True,
        ),
        "gmi: condition top-k, k = 4, no weights": (
            plain(estimator="gmi", condition="top-k", k=4, weighted=False), True,
        ),
    },
    "acmi": {
        "acmi: the default": (plain(estimator="acmi"), True),
        "acmi: no condition": (plain(estimator="acmi", condition="none"), True),
        "acmi: scaled by contributions": (plain(estimator="acmi", phi="contributions"), True),
    },
}  # fmt: skip


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--budgets", type=float, nargs="+", default=(0.4,))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    path = "resnet56_hypotheses"
    if not chosen.table:
        settings = {"data": chosen.data, "network": "resnet56", "weights": None, "part": None}
        bench = scoring.Bench(argparse.Namespace(**settings))
        bench.path, bench.cells = scoring.results(path), scoring.cells(path)
        bench.mine = bench.cells
        for seed in chosen.seeds:
            for budget in chosen.budgets:
                for block in HYPOTHESES.values():
                    for name, (score, shared) in block.items():
                        if fnmatch(name, chosen.only):
                            cell(bench, name, score, shared, budget, seed)
    print(table(scoring.cells(path)))
    return 0


def cell(
    bench: scoring.Bench, name: str, score: Score, shared: bool, budget: float, seed: int
) -> None:
    """One cell: BatchNorm alone, and refit + BatchNorm."""
    key = f"{budget}/{name}/{seed}"
    if key in bench.cells:
        return
    moments = bench.moments(seed)
    scores = score(bench, moments)
    plan = bench.plan_of(scores, moments if shared else None, budget)
    made = {"mint's widths": shared, "macs": plan.after.macs / plan.before.macs}
    for repair, weights in (("bn", False), ("refit", True)):
        made[repair] = bench.top1(bench.repaired(plan, seed, weights=weights), "validation")
    bench.keep(key, made)
    print(f"{key}: BN {made['bn']:.2f}, refit + BN {made['refit']:.2f}", flush=True)


def table(cells: Mapping[str, Any]) -> str:
    """Return what is there as Markdown."""
    lines = [
        "| of the MACs | what is changed | widths | BN only | refit + BN |",
        "|---|---|---|---|---|",
    ]
    for budget in sorted({key.split("/")[0] for key in cells}, reverse=True):
        for block in HYPOTHESES.values():
            for name in block:
                found = [c for k, c in cells.items() if k.startswith(f"{budget}/{name}/")]
                if found:
                    widths = "mint's" if found[0]["mint's widths"] else "own"
                    figures = " | ".join(spread([c[k] for c in found]) for k in ("bn", "refit"))
                    lines.append(f"| {budget} | {name} | {widths} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
