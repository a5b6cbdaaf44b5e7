"""The network of the report's tests: a CIFAR ResNet, its plan and its cut; figures invented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy import files
from mint_deploy.artifacts import Cost, Member, PlanGroup, PruningPlan, TensorSpec
from mint_deploy.overview import Overview, SurveyedGroup, SurveyedLayer

INPUT = TensorSpec(name="input", shape=(1, 3, 32, 32))
Layer = dict[str, Any]


def resnet_layers(blocks: int = 9) -> list[Layer]:
    """Return the layers of a CIFAR ResNet (56 for 9 blocks a part), cut to about half its MACs."""
    rng = np.random.default_rng(1)
    layers: list[Layer] = []

    def add(name: str, cin: tuple[int, int], cout: tuple[int, int], side: int) -> None:
        macs = [9 * i * o * side * side for i, o in zip(cin, cout, strict=True)]
        layers.append(
            {
                "name": name, "kind": "Conv2d", "before": cout[0], "after": cout[1],
                "macs_before": macs[0], "macs_after": macs[1],
            }
        )  # fmt: skip

    stream = (3, 3)
    for part, (width, kept, side) in enumerate(((16, 12, 32), (32, 24, 16), (64, 44, 8)), start=1):
        if part == 1:
            add("conv1", stream, (width, kept), side)
            stream = (width, kept)
        for block in range(blocks):
            inner = (width, int(rng.integers(width // 4, width + 1) // 4 * 4))
            add(f"layer{part}.{block}.conv1", stream, inner, side)
            stream = (width, kept)
            add(f"layer{part}.{block}.conv2", inner, stream, side)
    layers.append(
        {
            "name": "linear", "kind": "Linear", "before": 10, "after": 10,
            "macs_before": 640, "macs_after": 440,
        }
    )  # fmt: skip
    return layers


def costs(layers: Sequence[Layer]) -> tuple[Cost, Cost]:
    sums = [sum(layer[key] for layer in layers) for key in ("macs_before", "macs_after")]
    return (
        Cost(macs=sums[0], params=853_018, weight_bytes=3_412_072, peak_activation_bytes=262_144),
        Cost(macs=sums[1], params=437_466, weight_bytes=1_749_864, peak_activation_bytes=196_608),
    )


def plan_of(layers: Sequence[Layer], frozen: dict[str, str]) -> PruningPlan:
    before, after = costs(layers)
    groups = tuple(
        PlanGroup(
            name=f"{layer['name']}.out",
            size=layer["before"],
            keep=tuple(range(layer["after"])),
            round_to=4,
            members=(
                Member(
                    tensor=f"{layer['name']}.weight",
                    dim=0,
                    length=layer["before"],
                    index=np.arange(layer["before"])[:, None],
                ),
            ),
        )
        for layer in layers
        if layer["name"].endswith("conv1")
    )
    return PruningPlan(
        model="resnet56-cifar10",
        groups=groups,
        constants=(),
        frozen=frozen,
        before=before,
        after=after,
        criterion="mint",
        estimator="gaussian",
        budget={"macs": 0.5},
        target="jetson",
        seed=0,
        inputs=(INPUT,),
        notes=("28 groups are narrower than 4 x 8 units: round_to was halved there",),
    )


def write_plan(run: Path, layers: Sequence[Layer], frozen: dict[str, str]) -> PruningPlan:
    plan = plan_of(layers, frozen)
    files.write_value(run / "plan.json", plan)
    return plan


def write_overview(run: Path, layers: Sequence[Layer], plan: PruningPlan) -> None:
    """The plan's groups of one layer each, and all else in one frozen group."""
    planned = {g.name.removesuffix(".out"): i for i, g in enumerate(plan.groups)}
    own = [planned.get(layer["name"], len(planned)) for layer in layers]
    names = [*(g.name for g in plan.groups), "stream"]
    groups = [
        SurveyedGroup(
            name=name,
            width=next(layer["before"] for layer, o in zip(layers, own, strict=True) if o == at),
            status="cuttable" if name != "stream" else "frozen",
            reason="" if name != "stream" else "reaches the network's output",
            layers=tuple(i for i, o in enumerate(own) if o == at),
            readers=(),
            step=4,
            least=4,
            macs=1000,
            params=100,
        )
        for at, name in enumerate(names)
    ]
    drawn = [
        SurveyedLayer(
            name=layer["name"],
            kind=layer["kind"],
            width=layer["before"],
            macs=layer["macs_before"],
            params=100,
            makes=((at, layer["before"]),),
            reads=((own[max(0, i - 1)], layers[max(0, i - 1)]["before"]),),
        )
        for i, (layer, at) in enumerate(zip(layers, own, strict=True))
    ]
    overview = Overview(
        model=plan.model,
        target=plan.target,
        round_to=8,
        macs=plan.before.macs,
        params=plan.before.params,
        cuttable_macs_share=0.5,
        probed=True,
        inputs=plan.inputs,
        layers=tuple(drawn),
        groups=tuple(groups),
    )
    files.write_value(run / "overview.json", overview)


def write_cut(run: Path, layers: Sequence[Layer], plan: PruningPlan) -> None:
    rng = np.random.default_rng(2)
    groups: dict[str, Any] = {}
    for index, group in enumerate(plan.groups):
        status = "rolled back" if index == 3 else "proven" if group.removed else "whole"
        groups[group.name] = {
            "size": group.size,
            "kept": len(group.keep),
            "layers": [group.name.removesuffix(".out")],
            "permutation": float(10 ** rng.uniform(-15, -13)),
            "restriction": float(10 ** rng.uniform(-14, -12)),
            "power": float(10 ** rng.uniform(-1.5, 0)) if status == "proven" else "not sampled",
            "status": status,
            "reason": "a sabotaged cut was not noticed" if index == 3 else "",
        }
    files.write_json(
        run / "cut.json",
        {
            "cost_before": plan.before,
            "cost_after": plan.after,
            "seconds": {"cut": 0.41, "verify": 3.2},
            "groups": groups,
            "frozen": plan.frozen,
            "max_error": 8.6e-13,
            "layers": layers,
        },
        kind="Cut",
    )
