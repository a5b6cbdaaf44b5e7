"""ResNet-56 on the CIFAR-10 images: accuracy right after the cut, after repair, after one epoch.

    python benchmarks/resnet56_cifar10.py --data ../shared/data            # cut and repair, three seeds
    python benchmarks/resnet56_cifar10.py --data ../shared/data --epoch    # then one epoch each, one seed
    python benchmarks/resnet56_cifar10.py --table                          # print what is there

Criteria share the surgery, the repair and the images; random is the control, and *dense + the same
recovery* the control of recovery. *mint's widths*: mint says how wide every group is, the criterion which
units stay, so that the choice of units is compared alone. Choices (allocation, floor) were made on the
validation split; the test images are for the figures after one epoch alone. Every finished cell is written at
once, so a stopped run goes on where it was: `benchmarks/results/resnet56_cifar10.json`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mint_deploy as md
from mint_deploy import bench
from mint_deploy.data import Splits, load_data
from mint_deploy.evaluate import Outcome, evaluate
from mint_deploy.files import write_json
from mint_deploy.machine import probe
from mint_deploy.models import load_model
from mint_deploy.moments import read_moments, write_moments
from mint_deploy.plan import make_plan
from mint_deploy.verify import prove

RESULTS = Path(__file__).parent / "results" / "resnet56_cifar10.json"
WEIGHTS = "weights/resnet56-cifar10-jpeg.safetensors"
BUDGETS = (0.5, 0.4)
SEEDS = (0, 1, 2)
#: name -> (criterion, settings, allocation)
METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mint": ("mint", {}, "global"),
    "mint, uniform": ("mint", {}, "uniform"),
    "magnitude, uniform": ("magnitude", {}, "uniform"),
    "magnitude, mint's widths": ("magnitude", {}, "mint"),
    "random, uniform": ("random", {}, "uniform"),
    "random, mint's widths": ("random", {}, "mint"),
}
AFTER_EPOCH = ("mint", "magnitude, mint's widths", "random, mint's widths")


class Bench:
    """The network, the data, and the cells that are done."""

    def __init__(self, folder: Path) -> None:
        self.dense = load_model("resnet56-cifar10", folder / WEIGHTS).model.eval()
        self.data: Splits = load_data(f"cifar10:{folder / 'cifar10'}")
        self.graph = md.trace(self.dense, torch.zeros(1, 3, 32, 32))
        self.cells: dict[str, dict[str, Any]] = read_cells()
        self.scratch = Path(tempfile.gettempdir()) / "mint-deploy-resnet56"
        self.reference = evaluate(self.dense, self.data.validation)

    def moments(self, seed: int) -> md.Moments:
        """Sample once a seed; kept between runs."""
        kept = self.scratch / f"moments-{seed}.npz"
        if not kept.exists():
            start = time.perf_counter()
            made = md.sample(self.dense, self.graph, self.data.train, images=1000, seed=seed)
            self.keep(f"sample/{seed}", {"seconds": time.perf_counter() - start})
            write_moments(kept, made)
        return read_moments(kept)

    def plan(self, method: str, budget: float, seed: int, moments: md.Moments) -> md.PruningPlan:
        """Score and plan with one method."""
        criterion, settings, allocation = METHODS[method]
        start = time.perf_counter()
        scores = md.score(self.graph, moments, criterion=criterion, seed=seed, **settings)
        seconds = time.perf_counter() - start
        shared = allocation == "mint"
        guide = md.score(self.graph, moments) if shared else scores
        made = md.plan(
            self.graph,
            guide,
            target="cpu",
            macs=budget,
            allocation="global" if shared else allocation,
        )
        if shared:  # mint decides how wide every group is, the criterion which units stay
            chosen = {g.name: scores.groups[g.name].order[-len(g.keep) :] for g in made.groups}
            made = make_plan(self.graph, chosen, criterion=criterion, budget={"macs": budget})
        self.keep(f"score/{method}/{seed}", {"seconds": seconds})
        return made

    def keep(self, key: str, cell: dict[str, Any]) -> None:
        """Record a cell."""
        self.cells[key] = cell
        head = {
            "command": "python benchmarks/resnet56_cifar10.py [--epoch]",
            "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
            "machine": probe(),
            "cells": self.cells,
        }
        write_json(RESULTS, head, kind="Benchmark")

    def judged(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy on the validation split, with the paired drop against the dense network."""
        found = evaluate(model, self.data.validation, reference=self.reference).accuracy
        return {
            "top1": 100 * found.top1,
            "drop": found.drop,
            "drop_low": found.drop_low,
            "drop_high": found.drop_high,
        }

    def repair_cell(self, method: str, budget: float, seed: int) -> None:
        """One cell: cut, then BatchNorm alone, then refit and BatchNorm."""
        key = f"repair/{budget}/{method}/{seed}"
        if key in self.cells:
            return
        moments = self.moments(seed)
        plan = self.plan(method, budget, seed, moments)
        slim, plan, proof = prove(self.dense, plan, torch.zeros(1, 3, 32, 32))
        norm = md.repair(slim, None, plan, data=self.data.train, seed=seed)
        fixed = md.repair(slim, moments, plan, data=self.data.train, seed=seed)
        self.keep(
            key,
            {
                "macs": plan.after.macs / plan.before.macs,
                "params": plan.after.params / plan.before.params,
                "gate": proof.max_error,
                "bn": self.judged(norm),
                "refit": self.judged(fixed),
            },
        )
        print(key, {k: round(self.cells[key][k]["top1"], 2) for k in ("bn", "refit")}, flush=True)

    def epoch_cell(self, method: str, budget: float, reference: Outcome) -> None:
        """One cell: repair, one epoch of distillation, the test images, latency against dense."""
        key = f"epoch/{budget}/{method}"
        if key in self.cells:
            return
        moments = self.moments(0)
        plan = self.plan(method, budget, 0, moments)
        slim, plan, _ = prove(self.dense, plan, torch.zeros(1, 3, 32, 32))
        fixed = md.repair(slim, moments, plan, data=self.data.train, seed=0)
        start = time.perf_counter()
        trained = md.recover(fixed, self.data, teacher=self.dense, epochs=1.0, seed=0)
        seconds = time.perf_counter() - start
        found = evaluate(trained, self.data.test, reference=reference).accuracy
        example = torch.zeros(1, 3, 32, 32)
        slim_file, dense_file = (
            self.scratch / f"{len(self.cells)}.onnx",
            self.scratch / "dense.onnx",
        )
        md.export(self.dense, dense_file, example, target="cpu")
        md.export(trained, slim_file, example, target="cpu")
        _, compared = bench.interleave({"dense": dense_file, "slim": slim_file}, budget_s=60.0)
        self.keep(
            key,
            {
                "macs": plan.after.macs / plan.before.macs,
                "params": plan.after.params / plan.before.params,
                "validation": self.judged(trained),
                "test": {
                    "top1": 100 * found.top1,
                    "drop": found.drop,
                    "drop_low": found.drop_low,
                    "drop_high": found.drop_high,
                },
                "latency": compared[0],
                "seconds": seconds,
            },
        )
        print(key, f"test {100 * found.top1:.2f}", flush=True)

    def control(self) -> Outcome:
        """Dense, and dense with the same recovery, on the test images."""
        reference = evaluate(self.dense, self.data.test)
        if "epoch/control" not in self.cells:
            trained = md.recover(self.dense, self.data, teacher=self.dense, epochs=1.0, seed=0)
            found = evaluate(trained, self.data.test, reference=reference).accuracy
            self.keep(
                "epoch/control",
                {
                    "dense": 100 * reference.accuracy.top1,
                    "validation": self.judged(trained),
                    "test": {"top1": 100 * found.top1, "drop": found.drop},
                },
            )
        return reference


def read_cells() -> dict[str, dict[str, Any]]:
    """What earlier runs have done."""
    if not RESULTS.exists():
        return {}
    cells: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["cells"]
    return cells


def table(cells: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| MACs kept | method | params kept | BN only | refit + BN | drop (points) | after one epoch, test |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in BUDGETS:
        for method in METHODS:
            found = [cells[k] for s in SEEDS if (k := f"repair/{budget}/{method}/{s}") in cells]
            if not found:
                continue
            epoch = cells.get(f"epoch/{budget}/{method}")
            final = f"{epoch['test']['top1']:.2f}" if epoch else ""
            lines.append(
                f"| {np.mean([c['macs'] for c in found]):.3f} | {method} "
                f"| {np.mean([c['params'] for c in found]):.3f} "
                f"| {spread([c['bn']['top1'] for c in found])} "
                f"| {spread([c['refit']['top1'] for c in found])} "
                f"| {np.mean([c['refit']['drop'] for c in found]):.1f} "
                f"| {final} |"
            )
    control = cells.get("epoch/control")
    if control:
        lines.append(
            f"| 1 | dense ({control['dense']:.2f} on test) + the same epoch | 1 | | | "
            f"| {control['test']['top1']:.2f} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean, and the standard deviation over seeds."""
    middle = f"{statistics.mean(values):.1f}"
    return f"{middle} ± {statistics.stdev(values):.1f}" if len(values) > 1 else middle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    if not chosen.table:
        run = Bench(chosen.data)
        run.scratch.mkdir(exist_ok=True)
        if chosen.epoch:
            reference = run.control()
            for budget in sorted(BUDGETS):
                for method in AFTER_EPOCH:
                    run.epoch_cell(method, budget, reference)
        else:
            for seed in SEEDS:
                for budget in BUDGETS:
                    for method in METHODS:
                        run.repair_cell(method, budget, seed)
    print(table(read_cells()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
