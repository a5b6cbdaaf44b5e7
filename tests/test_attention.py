"""The attention whose heads can leave computes what PyTorch's does, in every way it can be called."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets import build
from torch import Tensor, nn

from mint_deploy.attention import SlimMultiheadAttention, open_attention
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "appended keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "other widths": {"kdim": 6, "vdim": 10},
    "all": {"kdim": 6, "vdim": 10, "add_bias_kv": True, "add_zero_attn": True},
}
CAUSAL = torch.ones(3, 3).triu(1).bool()
PADDING = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0]]).bool()
CALLS: dict[str, dict[str, Any]] = {
    "default": {},
    "no weights": {"need_weights": False},
    "boolean mask": {"attn_mask": CAUSAL},
    "a mask for each head": {
        "attn_mask": torch.linspace(-2, 2, 54).view(6, 3, 3),
        "average_attn_weights": False,
    },
    "both masks": {
        "attn_mask": CAUSAL,
        "key_padding_mask": PADDING,
        "need_weights": False,
        "is_causal": True,
    },
}


def pair(*, batch_first: bool = True, **settings: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings).eval()
    ours = copy.deepcopy(theirs)
    open_attention(ours)
    assert type(ours) is SlimMultiheadAttention
    return theirs, ours


def agree(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> None:
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] is None) == (b[1] is None)
    if a[1] is not None and b[1] is not None:
        torch.testing.assert_close(a[1], b[1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_it_computes_the_same(call: str, kind: str, batch_first: bool) -> None:
    theirs, ours = pair(batch_first=batch_first, **KINDS[kind])
    query = torch.randn(3, 3, 8)
    key = torch.randn(3, 3, KINDS[kind].get("kdim", 8))
    value = torch.randn(3, 3, KINDS[kind].get("vdim", 8))
    with torch.no_grad():
        agree(theirs(query, key, value, **CALLS[call]), ours(query, key, value, **CALLS[call]))


@pytest.mark.parametrize("kind", ["plain", "no bias", "appended keys", "zero attention"])
def test_without_a_batch_too(kind: str) -> None:
    theirs, ours = pair(**KINDS[kind])
    x, mask = torch.randn(5, 8), torch.randn(2, 5, 5)
    with torch.no_grad():
        agree(theirs(x, x, x), ours(x, x, x))
        agree(theirs(x, x, x, attn_mask=mask), ours(x, x, x, attn_mask=mask))


def test_gradients_are_the_same() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 5, 8)
    for module in (theirs, ours):
        module(x, x, x)[0].square().sum().backward()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_causal_without_a_mask_is_refused_as_theirs() -> None:
    for module in pair():
        x = torch.randn(2, 3, 8)
        with pytest.raises(RuntimeError, match="Need attn_mask"):
            module(x, x, x, is_causal=True, need_weights=False)


def test_only_what_is_cut_changes_its_class_and_the_model_not_at_all() -> None:
    model, inputs = build("encoder")
    graph = trace(model, inputs)
    heads = "encoder.layers.0.self_attn"
    slim: Any = cut(model, make_plan(graph, {heads: [1, 3]}))
    assert type(slim.encoder.layers[0].self_attn) is SlimMultiheadAttention
    assert type(slim.encoder.layers[1].self_attn) is nn.MultiheadAttention
    assert not any(isinstance(m, SlimMultiheadAttention) for m in model.modules())
    own = slim.encoder.layers[0].self_attn
    assert (own.num_heads, own.head_dim, own.value_dim, own.embed_dim) == (2, 4, 4, 16)
    assert list(own.in_proj_weight.shape) == [24, 16]
    assert own.scale == 0.5


def test_narrower_heads_keep_the_scale_of_the_wide_ones() -> None:
    model, inputs = build("encoder")
    graph = trace(model, inputs, attention="width")
    slim: Any = cut(model, make_plan(graph, {"encoder.layers.0.self_attn": [0, 2]}))
    own = slim.encoder.layers[0].self_attn
    assert (own.num_heads, own.head_dim + own.value_dim) == (4, 6)
    assert own.scale == 0.5


def test_a_scale_that_follows_from_the_width_is_taken_up_by_the_query() -> None:
    model, inputs = build("fused_attention")
    graph = trace(model, inputs, attention="width")
    slim: Any = cut(model, make_plan(graph, {"qkv": [0, 1]}))
    rows = [4 * h + d for h in range(4) for d in (0, 1)]
    dense = model.qkv.weight[rows]  # type: ignore[union-attr,index]  # nn.Module's attributes
    torch.testing.assert_close(slim.qkv.weight[:8], dense * 0.5**0.5)
    keys = model.qkv.weight[[16 + r for r in rows]]  # type: ignore[union-attr,index]
    assert torch.equal(slim.qkv.weight[8:16], keys)
