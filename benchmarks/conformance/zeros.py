"""Operators that put zeros beside values, in the reference's arithmetic of absent values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["filled_with_zeros"]


def filled_with_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Windows and unpooling of ``[N, C, H, W]``: an absent channel is absent where zeros are put, too."""
    gone = args[0].isnan().flatten(-2).all(-1)
    out: Tensor = func(args[0].nan_to_num(), *args[1:], **kwargs)
    by_channel = out.reshape(*gone.shape, -1)
    return by_channel.masked_fill(gone[..., None], float("nan")).reshape(out.shape)
