"""A small network, and what every test of the export needs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nets
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from mint_deploy.target import load_target

CLASSES = ["a", "b", "c", "d", "e"]


class Tiny(nn.Module):
    """Two convolutions with BatchNorm around a residual addition, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        nets.enliven(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.block(x)).relu()
        return self.head(x.mean((2, 3)))


def target(opset: int = 18, ir_version: int = 8, batch: int = 1):
    return dataclasses.replace(
        load_target("cpu"), opset=opset, ir_version=ir_version, batch=batch, sources={}
    )


def run(path: Path, **inputs: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})


def samples(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
