"""Everything of a user's model that a careless engine might change."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

KINDS = (int, float, str, bool, tuple, list)


def snapshot(model: nn.Module) -> list[dict[str, Any]]:
    """Bits and places of all tensors, plain attributes with their types, mode, numbers of hooks."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    return [
        {n: (t.data_ptr(), t.requires_grad, t.dtype, t.stride()) for n, t in tensors.items()},
        {
            n: {k: (type(v), v) for k, v in vars(m).items() if isinstance(v, KINDS)}
            for n, m in modules.items()
        },
        {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for n, m in modules.items()
        },
        {n: t.clone() for n, t in tensors.items()},
    ]


def assert_untouched(model: nn.Module, before: list[dict[str, Any]]) -> None:
    """The model is what it was, bit for bit."""
    after = snapshot(model)
    assert after[:3] == before[:3]
    assert after[3].keys() == before[3].keys()
    assert all(torch.equal(after[3][n], before[3][n]) for n in before[3])
