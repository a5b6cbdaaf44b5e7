"""The same architecture through torch-pruning, as its documentation asks, crossed in the same way.

``BasePruner`` with random importance at ``pruning_ratio=0.5``, fresh dictionaries for the channel groups, the
layers that make the network's output ignored, raw parameters left to its own detection, ``num_heads`` for
attention (``round_to`` the heads for PyTorch's own). Attention is tried in both documented ways (narrower heads,
then fewer heads, each followed by the documented update of the modules' numbers) and the better result counts;
``fused_attn`` of timm is off, so that narrower heads keep their scale.

Which slices it removed is read off without asking it: before ``step`` every parameter and buffer is
overwritten with its own flat indices.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conformance.absent import Mismatch, macs, outputs, reference, relative_error, tensors_of
from conformance.catalogue import SEED, Case, build
from conformance.ours import TOLERANCE, Clock
from mint_deploy.errors import MintDeployError
from mint_deploy.graph import find_groups

Kept = dict[str, list[list[int]]]
RANK = ("exact", "nothing pruned", "wrong", "crash")
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "narrower heads": {"prune_head_dims": True},
    "fewer heads": {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5},
}


def examine(case: Case) -> dict[str, Any]:
    """Prune with torch-pruning in every way that applies; return the best result, and all of them."""
    model, inputs = build(case)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    ways = [w for w in WAYS if w] if heads_of(model) else [""]
    clock = Clock()
    tried = {way: clock(way or "prune", lambda w=way: prune(model, inputs, w)) for way in ways}
    best = min(ways, key=lambda w: RANK.index(tried[w]["verdict"]))
    row = {**tried[best], "way": best, "seconds": clock.wall, "cpu_seconds": clock.cpu}
    if len(ways) > 1:
        row["tried"] = {w: f"{r['verdict']}: {r.get('error', '')}" for w, r in tried.items()}
    return row


def prune(model: nn.Module, inputs: tuple[Tensor, ...], way: str) -> dict[str, Any]:
    """Prune a copy in one way and judge it."""
    import torch_pruning as tp

    torch.manual_seed(SEED)
    theirs = copy.deepcopy(model)
    heads = heads_of(theirs)
    try:
        pruner = tp.pruner.BasePruner(
            theirs,
            inputs[0] if len(inputs) == 1 else inputs,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=0.5,
            ignored_layers=output_layers(theirs, inputs),
            in_channel_groups={},
            out_channel_groups={},
            num_heads=heads,
            round_to=widest_attention(theirs),
            **WAYS[way],
        )
        theirs.double()
        number(theirs)
        pruner.step()
        update_numbers(theirs, pruner)
    except Exception as error:  # noqa: BLE001  # whatever the peer raises is the finding
        return {"verdict": "crash", "error": f"pruning: {type(error).__name__}: {error}"[:500]}
    return judge(model, theirs, inputs)


def judge(model: nn.Module, theirs: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Give the numbered network its values back and compare it with the reference."""
    try:
        kept = restore(model, theirs)
    except ValueError as problem:
        return {"verdict": "wrong", "error": str(problem)}
    dense = tensors_of(model)
    removed = {
        name: {
            d: sorted(set(range(dense[name].shape[d])) - set(stays))
            for d, stays in enumerate(dims)
            if len(stays) < dense[name].shape[d]
        }
        for name, dims in kept.items()
    }
    removed = {name: dims for name, dims in removed.items() if dims}
    if not removed:
        return {"verdict": "nothing pruned"}
    left = sum(p.numel() for p in theirs.parameters())
    row: dict[str, Any] = {
        "params_kept": round(left / sum(p.numel() for p in model.parameters()), 4)
    }
    try:
        found = outputs(theirs, inputs)
    except Exception as error:  # noqa: BLE001  # whatever the pruned network raises is the finding
        text = f"the pruned network raises {type(error).__name__}: {error}"
        return row | {"verdict": "crash", "error": text[:500]}
    try:
        wanted = reference(model, removed, inputs)
    except Mismatch as problem:
        return row | {"verdict": "wrong", "error": f"crossing: {problem}"}
    error = relative_error(found, wanted)
    share = macs(theirs, inputs) / max(1, macs(model, inputs))
    row |= {"crossing": error, "macs_kept": round(share, 4)}
    if error <= TOLERANCE:
        return row | {"verdict": "exact"}
    folded = relative_error(outputs(refolded(model, theirs), inputs), wanted)
    why = f"crossing: off by {error:.3g}"
    if folded <= TOLERANCE:
        why += ", all of it from attention's scale: with the old one in the query it is exact"
    return row | {"verdict": "wrong", "error": why}


# ---------------------------------------------------------------- what was removed


def number(model: nn.Module) -> None:
    """Overwrite every floating tensor with its own flat indices, in place."""
    with torch.no_grad():
        for x in tensors_of(model).values():
            if x.is_floating_point():
                x.copy_(torch.arange(x.numel(), dtype=x.dtype).reshape(x.shape))


def restore(model: nn.Module, theirs: nn.Module) -> Kept:
    """Give a numbered network the values of ``model``; return the kept indices of every dimension.

    Raises:
        ValueError: a tensor of it is no sub-block of the original.
    """
    dense, kept = tensors_of(model), {}
    with torch.no_grad():
        for name, x in tensors_of(theirs).items():
            if not x.is_floating_point() or x.dim() == 0:
                continue
            original, flat = dense[name], x.round().long()
            rest, dims = flat, []
            for size in reversed(original.shape):
                dims.insert(0, rest % size)
                rest = rest // size
            block = len(original.shape) == x.dim() and math.prod(x.shape) > 0
            stays = []
            for d, place in enumerate(dims if block else ()):
                line = place.transpose(0, d).flatten(1)[:, 0] if x.dim() > 1 else place
                along = line.reshape([-1 if e == d else 1 for e in range(x.dim())])
                block = block and bool((place == along).all())
                stays.append(line.tolist())
            if not block:
                raise ValueError(f"'{name}' is no block of the original's entries")
            kept[name] = stays
            x.copy_(original.detach().double().flatten()[flat.flatten()].reshape(x.shape))
    return kept


# ---------------------------------------------------------------- what its documentation asks for


def output_layers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """Return the layers whose channels reach the network's output (found by our tracer)."""
    try:
        graph = find_groups(model, (inputs, {}))
    except MintDeployError:
        return []
    names = {
        weight.rpartition(".")[0]
        for name, group in graph.frozen_groups.items()
        if "network's output" in graph.frozen[name]
        for weight in group.producers
    }
    return [m for n, m in model.named_modules() if n in names]


#: how attention modules name the layers that make their queries, keys and values, and how many heads
QUERIES = ("query", "q", "q_proj", "q_lin", "wq", "to_q")
OTHERS = ("key", "value", "k", "v", "kv", "k_proj", "v_proj", "k_lin", "v_lin", "wk", "wv", "to_kv")
PACKED = ("qkv", "to_qkv", "qkv_proj")
HEADS = ("num_heads", "num_attention_heads", "n_heads")


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Return ``num_heads`` as its examples fill it: the layers that make queries, keys and values."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        numbers = [
            getattr(m, n, None) for m in (module, getattr(module, "config", None)) for n in HEADS
        ]
        heads = next((n for n in numbers if isinstance(n, int)), None)
        if heads is None or isinstance(module, nn.MultiheadAttention):
            continue
        for name in (*PACKED, *QUERIES, *OTHERS):
            layer = getattr(module, name, None)
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                groups = getattr(module, "num_key_value_groups", 1) if name in OTHERS else 1
                found[layer] = heads // groups
    return found


def widest_attention(model: nn.Module) -> int | None:
    """Return ``round_to`` as its examples give it for PyTorch's own attention: the number of heads."""
    heads = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return max(heads, default=None)


def update_numbers(model: nn.Module, pruner: Any) -> None:
    """Update the numbers that attention modules keep, as its examples do after pruning."""
    for module in model.modules():
        if isinstance(getattr(module, "conv_proj", None), nn.Conv2d):  # torchvision's ViT
            module.hidden_dim = module.conv_proj.out_channels
        named = [(n, getattr(module, n, None)) for n in (*PACKED, *QUERIES)]
        layers = [(n, x) for n, x in named if isinstance(x, nn.Module) and x in pruner.num_heads]
        if not layers:
            continue
        name, layer = layers[0]
        heads = pruner.num_heads[layer]
        width = layer.weight.shape[0] // (3 if name in PACKED else 1)
        new = {**dict.fromkeys(HEADS, heads), "attn_dim": width, "all_head_size": width}
        new |= {"head_dim": width // heads, "attention_head_size": width // heads}
        for number, value in new.items():
            if isinstance(getattr(module, number, None), int):
                setattr(module, number, value)


def refolded(model: nn.Module, theirs: nn.Module) -> nn.Module:
    """Return a copy whose PyTorch attention has the scale of the wider heads folded into the query.

    ``scaled_dot_product_attention`` divides by the root of the width it finds, so that a narrower head has
    another temperature: worth telling from channels that are mixed up.
    """
    made = copy.deepcopy(theirs)
    wide = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    with torch.no_grad():
        for name, module in made.named_modules():
            if name in wide and module.in_proj_weight is not None:
                size = module.in_proj_weight.shape[0] // 3
                factor = (size / module.num_heads / wide[name].head_dim) ** 0.5
                module.in_proj_weight[:size] *= factor
                if module.in_proj_bias is not None:
                    module.in_proj_bias[:size] *= factor
    return made
