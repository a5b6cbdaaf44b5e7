"""The networks of ``engines.py``, dense and slim, as ONNX files with the images to calibrate and to judge on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import mint_deploy as md
from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.data import Part, load_data
from mint_deploy.models import load_model

__all__ = ["NETWORKS", "Network", "Sizes"]

SEED = 0
#: images for BatchNorm's statistics of the network without trained weights
NORM_IMAGES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many images: to calibrate on, to hold the drop on (validation), for the final figures (test).

    ``fit``: for the classifier of a network without trained weights.
    """

    calibrate: int
    judge: int
    test: int
    fit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Files by variant, and the data. ``how`` says what the accuracy is worth."""

    files: dict[str, Path]
    train: Part
    validation: Part
    test: Part
    how: str


def resnet56(data: Path, work: Path, _: Sizes) -> Network:
    """ResNet-56 on CIFAR-10 with trained weights; slim by the pipeline at half of the MACs, refitted."""
    run = work / "run"
    weights = data / "weights/resnet56-cifar10-jpeg.safetensors"
    result = md.compress(
        "resnet56-cifar10",
        f"cifar10:{data / 'cifar10'}",
        weights=str(weights),
        macs=0.5,
        recover="refit",
        seed=SEED,
        out=str(run),
        resume=run.exists(),
        until="export",
    )
    files = {"dense": result.run / "dense.onnx", "slim": result.run / "model.onnx"}
    model = load_model("resnet56-cifar10", weights)
    splits = load_data(
        f"cifar10:{data / 'cifar10'}",
        input_shape=model.input_shape,
        model_mean=model.mean,
        model_std=model.std,
    )
    return Network(
        files=files,
        train=splits.train,
        validation=splits.validation,
        test=_needed(splits.test),
        how="trained; slim: mint at 0.5 of the MACs, least-squares refit, no training",
    )


def resnet50(data: Path, work: Path, sizes: Sizes) -> Network:
    """ResNet-50 at 224 with random weights under a classifier that is fitted to CIFAR-10's images, enlarged."""
    loaded = load_model("resnet50", None, seed=SEED)
    splits = load_data(
        f"cifar10:{data / 'cifar10'}",
        input_shape=loaded.input_shape,
        resize=224,
        model_mean=loaded.mean,
        model_std=loaded.std,
    )
    files = {name: work / f"{name}.onnx" for name in ("dense", "slim")}
    if not all(path.exists() for path in files.values()):
        dense = loaded.model
        _fit(dense, splits.train, sizes.fit)
        example = next(iter(splits.train.batches(2)))[0]
        graph = md.trace(dense, example)
        scores = md.score(graph, None, criterion="magnitude", seed=SEED)
        slim = md.cut(dense, md.plan(graph, scores, target="cpu", macs=0.5))
        _fit(slim, splits.train, sizes.fit)
        for name, model in (("dense", dense), ("slim", slim)):
            part = work / f"{name}.part.onnx"
            md.export(model, part, example, target="cpu")
            shutil.move(part, files[name])
    return Network(
        files=files,
        train=splits.train,
        validation=splits.validation,
        test=_needed(splits.test),
        how="random weights, the classifier fitted to 10 classes by ridge regression: what counts is the change",
    )


def _fit(model: nn.Module, train: Part, images: int) -> None:
    """Measure BatchNorm's statistics, and put a fitted classifier of the ten classes in place of the head."""
    recalibrate_batchnorm_(model, train, images=min(NORM_IMAGES, images), seed=SEED, batch=20)
    model.fc = nn.Identity()
    chosen, found, labels = train.balanced(images, SEED), [], []
    with torch.no_grad():
        for x, y in chosen.batches(20):
            found.append(model.eval()(x).double())
            labels.append(y)
    features = torch.cat(found)
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    z = torch.cat([(features - mean) / std, torch.ones(len(features), 1)], 1)
    wanted = nn.functional.one_hot(torch.cat(labels), 10).double()
    ridge = torch.eye(z.shape[1], dtype=torch.float64) * len(features)
    weight = torch.linalg.solve(z.T @ z + ridge, z.T @ wanted)
    model.fc = nn.Linear(features.shape[1], 10)
    with torch.no_grad():
        model.fc.weight.copy_(weight[:-1].T / std)
        model.fc.bias.copy_(weight[-1] - (weight[:-1].T / std) @ mean)


def _needed(part: Part | None) -> Part:
    if part is None:
        raise SystemExit("the data has no test part")
    return part


NETWORKS: dict[str, tuple[Callable[[Path, Path, Sizes], Network], Sizes]] = {
    "resnet56": (resnet56, Sizes(calibrate=512, judge=5000, test=10_000)),
    "resnet50": (resnet50, Sizes(calibrate=128, judge=500, test=1000, fit=800)),
}
