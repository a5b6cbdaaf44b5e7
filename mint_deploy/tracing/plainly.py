"""Run networks operator by operator: what PyTorch fuses is opened, so that every step can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["plainly"]


@contextmanager
def plainly() -> Iterator[None]:
    """Turn fused paths off: transformer layers, attention kernels, oneDNN's recurrent layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # torch.backends.mkldnn.flags() also sets TF32, which warns on machines without it
    fused: bool = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(fused)
        torch.backends.mha.set_fastpath_enabled(fast)
