"""Run folders for the tests of the report: real values, real files, invented figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from report_nets import INPUT, plan_of, resnet_layers, write_cut, write_overview, write_plan

from mint_deploy import files
from mint_deploy.artifacts import (
    Accuracy,
    Comparison,
    ExportedModel,
    GroupImportance,
    Importance,
    Machine,
    Measurement,
    PruningPlan,
    TaskSpec,
    TensorSpec,
)
from mint_deploy.runfolder import RunManifest, StageRecord
from mint_deploy.scores_file import write_scores

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
COMMAND = ("mint-deploy", "compress", "resnet56-cifar10", "--macs", "0.5", "--target", "jetson")

MACHINE = Machine(
    hostname="bench-1",
    system="Linux x86_64",
    cpu="Intel Xeon 8481C at 2.70 GHz",
    cores=2.0,
    memory_bytes=8_340_000_000,
    python="3.11.7",
    versions={"mint-deploy": "0.1.0", "numpy": "2.3.1", "onnxruntime": "1.23.0"},
    load_average=0.4,
    frequency_mhz=2700.0,
    virtualization="machine Google Compute Engine",
    details={
        "simd": ["avx2", "avx512f"],
        "smt": None,
        "nulls": {
            "governor": "no cpufreq in /sys (usual in a virtual machine)",
            "board": "no /proc/device-tree/model: not a single-board computer",
            "gpu": "nvidia-smi is not on PATH or found no GPU",
            "power_mode": "nvpmodel is not on PATH or gave no answer",
            "smt": "no /sys/devices/system/cpu/smt",
        },
    },
)


def manifest(
    run: Path,
    stages: Sequence[str] = (),
    *,
    model: str | None = "resnet56-cifar10",
    **settings: object,
) -> None:
    """Write run.json as a run that finished ``stages``."""
    record = StageRecord(
        inputs={}, settings={}, outputs=(), seconds=12.345, finished="2025-11-20T10:05:00+00:00"
    )
    files.write_value(
        run / "run.json",
        RunManifest(
            settings={
                "model": model,
                "data": "cifar10:../shared/data/cifar10",
                "target": "jetson",
                "macs": 0.5,
                "recover": "train",
                "epochs": 1.0,
                "max_accuracy_drop": 1.0,
                **settings,
            },
            seed=0,
            command=COMMAND,
            versions={"python": "3.11.7", "torch": "2.13.0"},
            created="2025-11-20T10:00:00+00:00",
            stages=dict.fromkeys(stages, record),
        ),
    )


# ---------------------------------------------------------------- accuracy


def accuracy_of(part: str, top1: float, samples: int, *, drop: float | None = None) -> Accuracy:
    """Return a figure with a plausible interval (the normal one is good enough here)."""
    half = 1.96 * (top1 * (1 - top1) / samples) ** 0.5
    rng = np.random.default_rng(int(1e6 * top1))
    spread = rng.normal(0, 0.04, len(CLASSES))
    return Accuracy(
        measure="top1",
        part=part,
        top1=top1,
        low=top1 - half,
        high=top1 + half,
        samples=samples,
        per_class={n: float(np.clip(top1 + s, 0, 1)) for n, s in zip(CLASSES, spread, strict=True)},
        flipped=None if drop is None else int(abs(drop) / 100 * samples) + 211,
        drop=drop,
        drop_low=None if drop is None else drop - 0.41,
        drop_high=None if drop is None else drop + 0.43,
    )


STEPS = (
    ("dense", 0.9212, 0.9188, None),
    ("cut", None, 0.4072, 51.16),
    ("repair", None, 0.8866, 3.22),
    ("recover", 0.9148, 0.9112, 0.64),
    ("control", 0.9221, 0.9194, -0.09),
)


def write_accuracy(
    run: Path, steps: Sequence[str] = ("dense", "cut", "repair", "recover", "control")
) -> None:
    found = [
        {
            "step": step,
            "label": {"control": "Dense + the same recovery"}.get(step),
            "validation": accuracy_of("validation", validation, 5000, drop=drop),
            "test": test and accuracy_of("test", test, 10_000, drop=drop),
        }
        for step, test, validation, drop in STEPS
        if step in steps
    ]
    text = (
        "kept: top1 on 'test' (10000 samples) dropped by 0.64 points (95 % interval 0.23 to 1.07);"
        " at most 1 points were promised; the interval straddles that limit: more held-out samples"
        " could turn it"
    )
    done = "recover" in steps
    files.write_json(
        run / "accuracy.json",
        {
            "steps": found,
            "class_names": CLASSES,
            "promise": {
                "max_accuracy_drop": 1.0,
                "kept": True if done else None,
                "text": text if done else "",
            },
        },
        kind="AccuracySteps",
    )


# ---------------------------------------------------------------- scores


def scores_of(plan: PruningPlan) -> Importance:
    """Return scores in whose order the plan's units leave, the losses ascending."""
    rng = np.random.default_rng(3)
    groups = {}
    for group in plan.groups:
        order = np.array([*group.removed, *group.keep], dtype=np.int64)
        loss = np.empty(group.size)
        loss[order] = np.sort(10 ** rng.normal(-2.5, 0.8, group.size))
        groups[group.name] = GroupImportance(loss=loss, order=order, spread=0.2 * loss)
    return Importance(
        groups=groups,
        criterion="mint",
        estimator="gaussian",
        seed=0,
        comparable=True,
        settings={"images": 1000, "sample_seed": 0},
    )


# ---------------------------------------------------------------- delivery and timing


def write_deploy(run: Path, plan: PruningPlan) -> None:
    def exported(path: str, size: int, error: float) -> ExportedModel:
        return ExportedModel(
            path=path,
            opset=18,
            ir_version=8,
            inputs=(INPUT,),
            outputs=(TensorSpec(name="logits", shape=(1, 10)),),
            sha256=f"{size:064x}",
            bytes=size,
            max_error=error,
            parity_batches=(1, 8),
        )

    files.write_json(
        run / "deploy.json",
        {
            "dense": exported("dense.onnx", 3_446_102, 2.7e-7),
            "slim": exported("model.onnx", 1_781_330, 3.1e-7),
            "target": {"name": "jetson"},
            "plan_digest": plan.digest(),
            "class_names": CLASSES,
            "mean": [0.49, 0.48, 0.45],
            "std": [0.2, 0.2, 0.2],
        },
        kind="Deploy",
    )
    (run / "bundle").mkdir()


def timed(
    label: str,
    median_ms: float,
    *,
    batch: int = 1,
    scenario: str = "single_stream",
    calls: int = 180,
) -> Measurement:
    """Return a measurement of five restarts of ``calls`` calls with a long tail."""
    rng = np.random.default_rng(len(label) + batch)
    restarts = []
    for _ in range(5):
        middle = median_ms * 1e6 * rng.normal(1, 0.008)
        samples = middle * (
            1 + 0.02 * rng.standard_normal(calls) + 0.05 * rng.exponential(0.3, calls)
        )
        restarts.append(tuple(int(v) for v in samples))
    return Measurement(
        task=TaskSpec(
            label=label,
            sha256="0" * 64,
            runtime="onnxruntime",
            precision="fp32",
            scenario=scenario,
            batch=batch,
            threads=1,
            inputs=(replace(INPUT, shape=(batch, 3, 32, 32)),),
        ),
        machine=MACHINE,
        restarts_ns=tuple(restarts),
        warmup_ns=(5_000_000,),
        peak_rss_bytes=97_000_000 if label == "dense" else 91_000_000,
        import_rss_bytes=72_500_000,
        load_ns=(41_000_000, 42_000_000),
        converged=True,
        started="2025-11-20T10:04:00+00:00",
        partner="slim" if label == "dense" else "dense",
        nulls={"energy_mj": "no energy counter: /sys/class/powercap does not exist"},
        doubts=("load average 2.4 on 2 cores before the measuring began: other work took part",),
    )


def write_timing(run: Path, *, calls: int = 180) -> list[Measurement]:
    found = [timed("dense", 3.412, calls=calls), timed("slim", 1.973, calls=calls)]
    found += [
        timed(label, ms * 7.1, batch=8, scenario="offline", calls=40)
        for label, ms in (("dense", 3.1), ("slim", 1.8))
    ]
    append(run, found)
    files.write_json(
        run / "comparison.json",
        {
            "comparisons": [
                Comparison(
                    a="dense", b="slim", ratio=0.5783, low=0.5651, high=0.5918,
                    confidence=0.95, restarts=5,
                )
            ]
        },
        kind="Comparisons",
    )  # fmt: skip
    return found


def append(run: Path, found: Sequence[Measurement]) -> None:
    import json

    with (run / "measurements.jsonl").open("a", encoding="utf-8") as stream:
        for measurement in found:
            body = {"kind": "Measurement", "schema": 1, **files.encode(measurement)}
            stream.write(json.dumps(body) + "\n")


def write_prediction(run: Path) -> None:
    files.write_json(
        run / "predicted.json",
        {
            "board": "Jetson Orin Nano 8 GB, 15 W",
            "basis": "roofline: the longer of arithmetic and memory traffic",
            "sources": {"memory_gb_per_s": "the data sheet"},
            "figures": [
                {
                    "key": "latency_ratio", "label": "Slim time / dense time", "value": 0.71,
                    "low": 0.55, "high": 0.9, "unit": "×", "basis": "memory bound: bytes moved",
                },
                {"key": "slim_latency_ms", "label": "Slim latency", "value": 0.182, "unit": "ms"},
                {
                    "key": "energy_mj", "label": "Energy", "value": None, "unit": "mJ",
                    "reason": "no model of this board's power",
                },
            ],
        },
        kind="Prediction",
    )  # fmt: skip


FROZEN = {
    "linear.out": "reaches the output 'logits'",
    "input": "is the network's input",
    "layer1.residual": "meets the constant zeros of a padded shortcut alone",
}


def whole(run: Path, *, frozen: dict[str, str] | None = None, calls: int = 180) -> Path:
    """Write the folder of a finished ResNet-56 run for a board that is not here."""
    run.mkdir(parents=True, exist_ok=True)
    layers = resnet_layers()
    stages = ("prepare", "sample", "score", "plan", "cut", "repair", "recover", "export", "bench")
    manifest(run, stages)
    (run / "target.toml").write_text('name = "jetson"\nfamily = "jetson"\nround_to = 8\n')
    plan = write_plan(run, layers, FROZEN if frozen is None else frozen)
    write_scores(run / "scores.npz", scores_of(plan))
    write_cut(run, layers, plan)
    write_overview(run, layers, plan)
    write_accuracy(run)
    write_deploy(run, plan)
    write_timing(run, calls=calls)
    write_prediction(run)
    return run


def begun(run: Path) -> Path:
    """Write the folder of a run that has planned and not cut."""
    run.mkdir(parents=True, exist_ok=True)
    manifest(run, ("prepare", "sample", "score", "plan"))
    write_plan(run, resnet_layers(), FROZEN)
    write_accuracy(run, ("dense",))
    return run


def small(run: Path) -> Path:
    """Write the folder of a finished run of a tiny network: few layers, no labels, no tail."""
    run.mkdir(parents=True, exist_ok=True)
    layers = resnet_layers(1)[:3] + resnet_layers(1)[-1:]
    manifest(run, ("prepare",), model=None, data="digits", target="cpu", max_accuracy_drop=None)
    plan = replace(plan_of(layers, {}), model="digits-resnet", target="cpu", notes=())
    files.write_value(run / "plan.json", plan)
    write_cut(run, layers, plan)
    agreed = Accuracy(measure="agreement", part="test", top1=1.0, low=1.0, high=1.0, samples=360)
    slim = replace(agreed, top1=0.9722, low=0.9497, high=0.9848, flipped=10)
    files.write_json(
        run / "accuracy.json",
        {
            "steps": [
                {"step": "dense", "label": "", "validation": None, "test": agreed},
                {"step": "recover", "label": "", "validation": None, "test": slim},
            ],
            "class_names": None,
            "promise": {"max_accuracy_drop": None, "kept": None, "text": ""},
        },
        kind="AccuracySteps",
    )
    write_deploy(run, plan)
    write_timing(run, calls=20)
    return run
