"""``nn.MultiheadAttention`` whose heads can leave.

PyTorch's own ties three numbers to the width of its input: the heads, their widths, and the rows of its packed
weight. :class:`SlimMultiheadAttention` computes the same from the same parameters under the same names, with
those numbers kept apart: ``num_heads``, ``head_dim`` (queries and keys), ``value_dim``, and the
``scale`` of the uncut layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SlimMultiheadAttention", "open_attention"]


class SlimMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with heads and widths of its own; made by :func:`open_attention`."""

    value_dim: int
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention`` does: ``[N, L, E]`` or ``[L, N, E]``, unbatched ``[L, E]``."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        selfish = query is key and key is value
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value, selfish=selfish)
        n, length = query.shape[:2]
        q = q.view(n, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = k.reshape(n, k.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
        v = v.reshape(n, v.shape[1], self.num_heads, self.value_dim).transpose(1, 2)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = out.transpose(1, 2).reshape(n, length, -1)
        out = F.linear(out, self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, *, selfish: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, ``[N, L, heads * width]``."""
        inner, outer = self.num_heads * self.head_dim, self.num_heads * self.value_dim
        bias = self.in_proj_bias
        matrix: Tensor | None = self.in_proj_weight
        if matrix is not None and selfish:
            packed = F.linear(query, matrix, bias)
            q, k, v = torch.split(packed, [inner, inner, outer], -1)
        else:
            ends = (slice(inner), slice(inner, 2 * inner), slice(2 * inner, None))
            if matrix is not None:
                matrices = [matrix[rows] for rows in ends]
            else:
                matrices = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
            shifts = [None if bias is None else bias[rows] for rows in ends]
            q, k, v = (
                F.linear(x, weight, shift)
                for x, weight, shift in zip((query, key, value), matrices, shifts, strict=True)
            )
        if self.bias_k is not None and self.bias_v is not None:
            n = k.shape[0]
            k = torch.cat([k, self.bias_k.expand(n, -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(n, -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None
    ) -> Tensor | None:
        """Join both masks into one that is added to the scores, ``[N or 1, heads or 1, L or 1, S]``."""
        joined: Tensor | None = None
        for mask, shape in ((attention, (-1, q.shape[1])), (padding, (-1, 1, 1))):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
            extra = k.shape[2] - mask.shape[-1]
            mask = F.pad(mask, (0, extra)) if extra else mask
            if mask.dim() == 3:
                mask = mask.view(*shape, *mask.shape[1:])
            elif shape[1:] == (1, 1):
                mask = mask.view(-1, 1, 1, mask.shape[-1])
            joined = mask if joined is None else joined + mask
        return joined


def open_attention(module: nn.Module) -> None:
    """Turn an ``nn.MultiheadAttention`` into a :class:`SlimMultiheadAttention` in place; others stay."""
    if type(module) is nn.MultiheadAttention:
        module.__class__ = SlimMultiheadAttention
        module.value_dim = module.head_dim
        module.scale = float(module.head_dim) ** -0.5
        # keeps PyTorch's fused layers from reading the weights; it has no public name
        module._qkv_same_embed_dim = False  # noqa: SLF001
