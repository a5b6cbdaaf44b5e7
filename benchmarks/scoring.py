"""Which units to cut: every criterion and estimator on the same network, the same surgery, the same repair.

    python benchmarks/scoring.py                       # the grid: budgets x methods x three sampling seeds
    python benchmarks/scoring.py --recover             # 200 steps of recovery for the best, and the controls
    python benchmarks/scoring.py --test                # the test images, once, for what the table shows
    python benchmarks/scoring.py --table               # print what is there
    python benchmarks/scoring.py --only 'mint*' --budgets 0.4      # some cells
    python benchmarks/scoring.py --network vgg16bn --weights F --train 100 --device cuda    # trains it, on a GPU
    python benchmarks/scoring.py --network vgg16bn --weights F      # the grid on VGG16-BN

ResNet-56 and the images are those of ``--data``. Inner channels and residual streams are cut together, in widths
of the target ``cpu``. Every method is run with the allocation of its paper (a global ranking, or the same share in
every group) and *at mint's widths*, where mint says how wide every group becomes and the method which units stay.
A cell is accuracy after the cut with BatchNorm measured anew, and after the refit of the consumers too; no
training. Choices (settings, the default) were made on the validation split; the test images are for final figures
alone.

Each finished cell is written at once: a stopped run goes on where it was (``results/scoring_*.json``), and two
runs share the work with ``--part 0/2`` and ``--part 1/2``, each with a file of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from scoring_methods import NETWORKS, Method, methods, train
from scoring_table import table
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.data import Splits, load_data
from mint_deploy.files import write_json
from mint_deploy.machine import probe
from mint_deploy.models import load_model
from mint_deploy.moments import read_moments, write_moments
from mint_deploy.plan import make_plan
from mint_deploy.repair import refit
from mint_deploy.sparsity import sparsify
from mint_deploy.surgery import cut

RESULTS = Path(__file__).parent / "results"
BUDGETS, SEEDS, IMAGES, NORM_IMAGES, BATCH = (0.7, 0.5, 0.4, 0.3), (0, 1, 2), 1000, 1000, 50
#: recovery: at one budget, so many steps, the same for all
RECOVER_AT, STEPS, RECOVERY_BATCH = 0.3, 200, 64


class Bench:
    """The network, the data, and the cells that are done."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.folder: Path = chosen.data
        self.network: str = chosen.network
        name, weights = NETWORKS[self.network]
        given = chosen.weights or (self.folder / weights if weights else None)
        if given is None:
            raise SystemExit(f"{self.network} needs --weights: none are here; a GPU trains one")
        self.dense = load_model(name, given).model.eval()
        self.data: Splits = load_data(f"cifar10:{self.folder / 'cifar10'}")
        self.graph = md.trace(self.dense, torch.zeros(1, 3, 32, 32))
        self.path = results(self.network, chosen.part)
        self.cells = cells(self.network)
        self.mine: dict[str, Any] = (
            json.loads(self.path.read_text())["cells"] if self.path.exists() else {}
        )
        self.scratch = Path(tempfile.gettempdir()) / f"mint-deploy-scoring-{self.network}"
        self.scratch.mkdir(exist_ok=True)
        self.norms = self.data.train.balanced(NORM_IMAGES, 123)
        self.images: dict[str, tuple[Tensor, Tensor]] = {}
        self._moments: tuple[int, md.Moments] | None = None

    def moments(self, seed: int) -> md.Moments:
        """Sample once a seed, all evidence at once; kept between runs."""
        if self._moments is None or self._moments[0] != seed:
            kept = self.scratch / f"moments-{seed}.npz"
            if not kept.exists():
                made = md.sample(
                    self.dense,
                    self.graph,
                    self.data.train,
                    images=IMAGES,
                    seed=seed,
                    # gradients are of all images, and with them sensitivities
                    evidence=("moments", "sensitivity", "pooled", "gradients"),
                )
                write_moments(kept, made)
            self._moments = (seed, read_moments(kept))
        return self._moments[1]

    def keep(self, key: str, cell: dict[str, Any]) -> None:
        """Record a cell."""
        self.cells[key] = self.mine[key] = cell
        head = {
            "command": "python benchmarks/scoring.py",
            "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
            "machine": probe(),
            "network": self.network,
            "cells": self.mine,
        }
        write_json(self.path, head, kind="Benchmark")

    def top1(self, model: nn.Module, part: str) -> float:
        """Accuracy in per cent, by ONNX Runtime on one thread: it is twice as fast as PyTorch here."""
        path = self.scratch / f"{os.getpid()}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the old exporter says that it is old; it takes a tenth of the time
            torch.onnx.export(
                model.eval(), (torch.zeros(BATCH, 3, 32, 32),), str(path), dynamo=False
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        if part not in self.images:
            batches = list(getattr(self.data, part).batches(BATCH))
            self.images[part] = (
                torch.cat([x for x, _ in batches]),
                torch.cat([y for _, y in batches]),
            )
        x, y = self.images[part]
        right = 0
        for inputs, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            found = np.asarray(session.run(None, {name: inputs.numpy()})[0])
            right += int((found.argmax(1) == labels.numpy()).sum())
        return 100 * right / len(y)

    def dense_cell(self) -> None:
        """The network itself."""
        if "dense" not in self.cells:
            self.keep("dense", {"validation": self.top1(self.dense, "validation")})

    def plan(self, method: Method, budget: float, seed: int) -> tuple[md.PruningPlan, float]:
        """Score and plan; return the plan and the seconds that scoring took."""
        moments = self.moments(seed)
        start = time.perf_counter()
        scores = md.score(
            self.graph,
            moments,
            criterion=method.criterion,
            estimator=method.estimator,
            seed=seed,
            **method.settings,
        )
        seconds = time.perf_counter() - start
        guide = moments if method.allocation == "mint" else None
        return self.plan_of(scores, guide, budget, method.allocation), seconds

    def plan_of(
        self,
        scores: md.Importance,
        guide: md.Moments | None,
        budget: float,
        allocation: str = "auto",
    ) -> md.PruningPlan:
        """Plan; with a ``guide`` mint decides how wide every group is, and the scores which units stay."""
        if guide is None:
            return md.plan(self.graph, scores, target="cpu", macs=budget, allocation=allocation)
        mint = md.score(self.graph, dataclasses.replace(guide, halves=()))
        wide = md.plan(self.graph, mint, target="cpu", macs=budget)
        chosen = {
            g.name: scores.groups[g.name].order[-len(g.keep) :]
            for g in wide.groups
            if g.name in scores.groups
        }
        return make_plan(self.graph, chosen, criterion=scores.criterion, budget={"macs": budget})

    def repaired(self, plan: md.PruningPlan, seed: int, *, weights: bool) -> nn.Module:
        """Cut and repair: BatchNorm alone, or the consumers' weights before it."""
        slim = cut(self.dense, plan)
        if weights:
            refit(slim, self.moments(seed), plan)
        recalibrate_batchnorm_(slim, self.norms, images=NORM_IMAGES)
        return slim

    def cell(self, name: str, method: Method, budget: float, seed: int) -> None:
        """One cell of the grid."""
        key = f"{budget}/{name}/{seed}"
        if key in self.cells:
            return
        plan, seconds = self.plan(method, budget, seed)
        digest = f"{zlib.crc32(json.dumps([[g.name, g.keep] for g in plan.groups]).encode()):08x}"
        same = [
            c
            for k, c in self.cells.items()
            if c.get("plan") == digest and k.startswith(f"{budget}/")
        ]
        norm = (
            same[0]["bn"]
            if same
            else self.top1(self.repaired(plan, seed, weights=False), "validation")
        )
        fixed = self.top1(self.repaired(plan, seed, weights=True), "validation")
        made = {
            "macs": plan.after.macs / plan.before.macs,
            "params": plan.after.params / plan.before.params,
            "plan": digest,
            "score_seconds": seconds,
            "bn": norm,
            "refit": fixed,
        }
        self.keep(key, made)
        print(f"{key}: BN {norm:.2f}, refit + BN {fixed:.2f}", flush=True)

    def test_cell(self, name: str, method: Method, budget: float, seed: int = 0) -> None:
        """The test images, once, after refit + BN."""
        key = f"test/{budget}/{name}/{seed}"
        if key not in self.cells:
            plan, _ = self.plan(method, budget, seed)
            found = self.top1(self.repaired(plan, seed, weights=True), "test")
            self.keep(key, {"refit": found})
            print(f"{key}: {found:.2f}", flush=True)

    def recover_cell(self, name: str, method: Method | None) -> None:
        """So many steps of distillation after refit + BN, then the test images; ``None``: the dense network."""
        key = f"recover/{RECOVER_AT if method else 1}/{name}"
        if key in self.cells:
            return
        if method is None:
            model = self.dense
            before = self.top1(self.dense, "test")
        else:
            plan, _ = self.plan(method, RECOVER_AT, 0)
            model = self.repaired(plan, 0, weights=True)
            before = self.cells[f"{RECOVER_AT}/{name}/0"]["refit"]
        trained = md.recover(
            model,
            self.data.train,  # no validation: the last state, and nothing is chosen
            teacher=self.dense,
            steps=STEPS,
            batch=RECOVERY_BATCH,
            seed=0,
        )
        self.keep(
            key,
            {
                "before": before,
                "validation": self.top1(trained, "validation"),
                "test": self.top1(trained, "test"),
            },
        )
        print(f"{key}: {self.cells[key]}", flush=True)

    def sparse_cells(self) -> None:
        """BN scale after sparsity training, and that network without a cut."""
        if all(f"sparse/{b}" in self.cells for b in (1, *BUDGETS)):
            return
        steps = STEPS
        sparse = sparsify(self.dense, self.data, strength=1e-2, steps=steps, seed=0)
        self.keep("sparse/1", {"validation": self.top1(sparse, "validation"), "steps": steps})
        graph = md.trace(sparse, torch.zeros(1, 3, 32, 32))
        moments = md.sample(sparse, graph, self.data.train, images=IMAGES, seed=0)
        for budget in BUDGETS:
            scores = md.score(graph, moments, criterion="bn_scale")
            plan = md.plan(graph, scores, target="cpu", macs=budget)
            found = {}
            for name, weights in (("bn", False), ("refit", True)):
                slim = cut(sparse, plan)
                if weights:
                    refit(slim, moments, plan)
                recalibrate_batchnorm_(slim, self.norms, images=NORM_IMAGES)
                found[name] = self.top1(slim, "validation")
            self.keep(f"sparse/{budget}", found)
            print(f"sparse/{budget}: {found}", flush=True)


def results(network: str, part: str | None = None) -> Path:
    """Where the cells lie."""
    suffix = f"_part{part.split('/')[0]}" if part else ""
    return RESULTS / f"scoring_{network}{suffix}.json"


def cells(network: str) -> dict[str, Any]:
    """What all runs have done."""
    found: dict[str, Any] = {}
    for path in sorted(RESULTS.glob(f"scoring_{network}*.json")):
        found |= json.loads(path.read_text())["cells"]
    return found


def wanted(chosen: argparse.Namespace) -> Iterator[tuple[str, Method, float, int]]:
    """The cells that this run is asked for: seed by seed, so that a stopped run has whole columns."""
    every = [
        (name, method, budget, seed)
        for seed in chosen.seeds
        for budget in chosen.budgets
        for name, method in methods().items()
        if any(fnmatch(name, pattern) for pattern in chosen.only)
    ]
    yield from part_of(every, chosen.part)


def part_of(every: list[Any], part: str | None) -> list[Any]:
    """Return what one of several runs does."""
    if not part:
        return every
    mine, of = (int(n) for n in part.split("/"))
    return every[mine::of]


def best(found: Mapping[str, Any], count: int) -> list[str]:
    """The methods with the best mean after refit + BN where recovery is judged."""
    means = {
        name: np.mean(scores)
        for name in methods()
        if (
            scores := [
                found[k]["refit"] for s in SEEDS if (k := f"{RECOVER_AT}/{name}/{s}") in found
            ]
        )
        and not name.startswith("random")
    }
    return sorted(means, key=lambda n: -means[n])[:count]


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet56")
    parser.add_argument("--weights", type=Path)
    parser.add_argument(
        "--train", type=float, metavar="EPOCHS", help="first train the network; needs --weights"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=["*"])
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--part", help="0/2: the first half of the cells")
    parser.add_argument("--threads", type=int)
    for flag in ("recover", "test", "sparse", "table"):
        parser.add_argument(f"--{flag}", action="store_true")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.train:
        if not chosen.weights:
            parser.error("--train needs --weights: where to write them")
        train(chosen)
        return 0
    if not chosen.table:
        bench = Bench(chosen)
        bench.dense_cell()
        if chosen.recover:
            controls = ["dense", "random, mint's widths"]
            names = [*controls, *best(bench.cells, 6)]
            if chosen.only != ["*"]:
                names = [
                    n for n in ("dense", *methods()) if any(fnmatch(n, p) for p in chosen.only)
                ]
            for name in part_of(names, chosen.part):
                bench.recover_cell(name, methods().get(name))
        elif chosen.sparse:
            bench.sparse_cells()
        elif chosen.test:
            for budget in chosen.budgets:
                for name, method in methods().items():
                    if any(fnmatch(name, pattern) for pattern in chosen.only):
                        bench.test_cell(name, method, budget)
        else:
            for name, method, budget, seed in wanted(chosen):
                bench.cell(name, method, budget, seed)
    print(table(cells(chosen.network), list(methods()), BUDGETS, SEEDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
