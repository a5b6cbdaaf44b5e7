"""What is shipped, and how well it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mint_deploy.values.basic import TensorSpec

__all__ = ["Accuracy", "Engine", "ExportedModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """An ONNX file on disk, and how far its outputs are from PyTorch's (max relative error)."""

    path: str
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str
    bytes: int
    max_error: float
    parity_batches: tuple[int, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Something a runner can run: for ONNX Runtime the ONNX file itself, for TensorRT a plan file."""

    path: str
    runtime: str
    precision: str
    sha256: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    builder: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracy of one network on one data part; ``low`` and ``high`` are a 95 % Wilson interval.

    ``per_class`` maps class name -> fraction right. Without labels ``top1`` is the agreement with
    the dense network and ``measure`` says so (``"top1"`` or ``"agreement"``).
    """

    measure: str
    part: str
    top1: float
    low: float
    high: float
    samples: int
    per_class: Mapping[str, float] = field(default_factory=dict)
    flipped: int | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
