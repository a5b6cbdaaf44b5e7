"""The rows of ``scoring.py``, the networks, and how one is trained where there is a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mint_deploy.data import load_data
from mint_deploy.loading import save
from mint_deploy.models import load_model
from mint_deploy.recover import train_from_scratch

__all__ = ["NETWORKS", "Method", "methods", "own", "train"]


class Method(NamedTuple):
    """One row of the table."""

    criterion: str
    estimator: str | None = None
    allocation: str = "auto"
    settings: Mapping[str, Any] = {}
    sparse: bool = False
    #: what is gathered beside moments decides which sample it needs
    seeded: bool = True  # whether the choice of units depends on the sample


def own() -> dict[str, Method]:
    """Each method with the allocation of its paper."""
    return {
        "mint gaussian": Method("mint", "gaussian"),
        "mint gmi": Method("mint", "gmi"),
        "mint acmi": Method("mint", "acmi"),
        "thinet": Method("thinet"),
        "taylor": Method("taylor"),
        "nisp": Method("nisp", seeded=False),
        "fpgm": Method("fpgm", seeded=False),
        "magnitude": Method("magnitude", seeded=False),
        "lamp": Method("lamp", seeded=False),
        "bn_scale": Method("bn_scale", seeded=False),
        "random": Method("random"),
    }


def methods() -> dict[str, Method]:
    """All rows."""
    made = own()
    for name, method in own().items():
        if name != "mint gaussian":
            made[f"{name}, mint's widths"] = method._replace(allocation="mint")
    made["mint gaussian, uniform"] = Method("mint", "gaussian", "uniform")
    return made


NETWORKS = {
    "resnet56": ("resnet56-cifar10", "weights/resnet56-cifar10-jpeg.safetensors"),
    "vgg16bn": ("vgg16-bn-cifar10", None),
}


def train(chosen: argparse.Namespace) -> None:
    """Train a network from scratch on the training images outside the validation split."""
    data = load_data(f"cifar10:{chosen.data / 'cifar10'}")
    made = train_from_scratch(
        load_model(NETWORKS[chosen.network][0]).model,
        data,
        epochs=chosen.train,
        batch=128,
        seed=0,
        device=chosen.device,
        checkpoint=chosen.weights.with_suffix(".checkpoint.safetensors"),
        progress=lambda done, of, note: print(f"\r{done:.0f}/{of:.0f} {note}", end="", flush=True),
    )
    recipe = f"{chosen.train:g} epochs from scratch, batch 128, seed 0, torch {torch.__version__}"
    save(made.cpu(), chosen.weights, metadata={"recipe": recipe})
