"""What several stages share: tensors and costs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost", "TensorSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output: name, shape (first entry is the batch) and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a network costs for ONE sample: multiply-adds, parameters, bytes.

    ``peak_activation_bytes`` is computed from the live tensors of the traced forward pass.
    """

    macs: int
    params: int
    weight_bytes: int
    peak_activation_bytes: int
