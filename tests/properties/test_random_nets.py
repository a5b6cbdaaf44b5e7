"""Whatever network is put together from real ones' pieces, whatever plan: exact, or frozen with a reason."""

from __future__ import annotations

import copy

import pytest
import torch
from conformance.absent import Mismatch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from masking import absent_error, random_keep
from random_nets import KINDS, SIDE, Gene, assemble
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import SurgeryError
from mint_deploy.graph import find_groups
from mint_deploy.inputs import as_call
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace
from mint_deploy.verify import prove

gene = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 11), st.integers(0, 11))
genes = st.lists(gene, min_size=1, max_size=5)
numbers = st.integers(0, 2**16)

#: Numbers follow from the width of another group here: which plans fit is decided by the gate, plan by plan.
BY_PLAN = {
    "shaped_by_input": "``c // heads`` follows from the stream's width; some plans of stream and heads agree",
}

#: The gate may roll back more than for want of power; what it lets through is crossed again.
CAREFUL = {
    "packed_attention": "``sqrt(q.shape[-1])`` changes with a head's width: a probe of faint scores cannot see it",
    "separate_attention": "the same",
    "multihead": "without bias PyTorch's own layer multiplies in other steps than the opened one: refused",
}
#: The crossing knows of tensors' slices alone: padded channels leave, and a softmax counts them.
PADDED = {"padded", "residual_padded"}
#: Not predicted: how many multiply-adds the cut network has left.
UNCOUNTED = {
    "mixer": "a layer over positions is no layer over channels: its rows leave, its multiply-adds are not counted",
    "masked_weights": "once a single element is left of weight and mask, they pass for a scalar",
}


def check(sequence: list[Gene], tail: int, skip: int, seed: int, *, gate: bool = True) -> str:
    """Trace, cut by a random plan, cross, prove, train a step; say what came of it."""
    net = assemble(sequence, tail=tail, skip=skip, seed=seed)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    graph = trace(net, x, attention=("heads", "width")[seed % 2])
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert set(graph.frozen) == set(graph.frozen_groups)
    assert all(reason.strip() for reason in graph.frozen.values())
    if not graph.groups:
        return "all frozen"
    keep = random_keep(graph, seed)
    if seed % 5 == 0:  # as few as can be
        keep = {name: units[:1] for name, units in keep.items()}
    plan = make_plan(graph, keep)
    kinds = {kind for kind, _, _ in sequence}
    if kinds.isdisjoint(BY_PLAN):
        cross(net, plan, x, kinds)
        slim = cut(net, plan)
        found, predicted = find_groups(slim, as_call(x)).cost, graph.cost_of(keep)
        assert (found.params, found.weight_bytes) == (predicted.params, predicted.weight_bytes)
        if kinds.isdisjoint(UNCOUNTED):
            assert found.macs == predicted.macs
        assert sum(p.numel() for p in slim.parameters()) == plan.after.params
        train_one_step(slim, x)
    return proven(net, plan, x, seed, kinds) if gate else "exact"


def cross(net: nn.Module, plan: PruningPlan, x: Tensor, kinds: set[str]) -> None:
    """The cut network equals the dense one without what left."""
    try:
        error = absent_error(net, plan, (x,))
    except Mismatch:
        error = float("inf")
    unseen = plan.statistics and kinds & PADDED
    assert error < 1e-8 or unseen


def proven(net: nn.Module, plan: PruningPlan, x: Tensor, seed: int, kinds: set[str]) -> str:
    """Whatever the gate lets through is right; it refuses for want of power alone."""
    careful = kinds & {*BY_PLAN, *CAREFUL}
    allowed = ("no power", "once cut", "the cut network differs")[: 3 if careful else 1]
    try:
        slim, done, proof = prove(net, plan, x, seed=seed)
    except SurgeryError as refused:
        # A single unit that is silent on every input is exact, and yet nothing can be proven.
        assert any(why in str(refused) for why in allowed)  # noqa: PT017  # most networks are not refused
        return "refused"
    assert proof.max_error < 1e-8
    failed = {n: g.reason for n, g in proof.groups.items() if g.status == "rolled back"}
    assert all(reason.startswith(allowed) for reason in failed.values())
    assert set(failed) <= set(done.frozen)
    if failed or careful:
        cross(net, done, x, kinds)
        train_one_step(slim, x)
    return "rolled back" if failed else "proven"


def train_one_step(slim: nn.Module, x: Tensor) -> None:
    """Gradients reach the slim network's parameters, and a step changes what it computes."""
    made = copy.deepcopy(slim).train().requires_grad_(requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimiser = torch.optim.SGD(made.parameters(), lr=1e-3)
        sum(y.square().sum() for y in tree_leaves(made(x))).backward()
        assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
        assert any(p.grad.abs().max() > 0 for p in made.parameters() if p.grad is not None)
        optimiser.step()
        with torch.no_grad():
            assert all(y.isfinite().all() for y in tree_leaves(made.eval()(x)))


@settings(
    max_examples=100, deadline=None, derandomize=True, database=None,
    phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(genes, st.integers(0, 3), st.integers(0, 7), numbers)
def test_random_networks_are_exact_or_frozen(
    sequence: list[Gene], tail: int, skip: int, seed: int
) -> None:
    event(check(sequence, tail, skip, seed))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(
    max_examples=2000, deadline=None, database=None, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.lists(gene, min_size=1, max_size=10), st.integers(0, 3), st.integers(0, 7), numbers)
def test_many_random_networks_are_exact_or_frozen(
    sequence: list[Gene], tail: int, skip: int, seed: int
) -> None:
    event(check(sequence, tail, skip, seed))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_piece_alone_is_exact_or_frozen(kind: str) -> None:
    """Hypothesis may miss a piece; here none is missed."""
    free = 0
    for number in range(5):
        sequence = [(kind, number, number // 2)]
        check(sequence, number, number, number, gate=number == 3)
        net = assemble(sequence, tail=number % 2)
        graph = find_groups(net, as_call(torch.randn(2, 3, SIDE, SIDE)))
        free += any(m.tensor == "stem.0.weight" for g in graph.groups.values() for m in g.members)
    # What a piece freezes is listed in test_rules.py; no piece freezes its input in every variant.
    assert free or kind in ("split_by_literal", "standardised")


@pytest.mark.parametrize(
    ("sequence", "tail", "skip"),
    [
        # padding on one side only: nothing is counted on the other
        ([("residual_padded", 0, 0)], 0, 0),
        # a depthwise layer over two branches, one of them frozen by trying
        (
            [
                ("residual_padded", 8, 4), ("tied", 3, 6), ("pooled", 2, 5), ("chunked", 9, 4),
                ("depthwise", 0, 5), ("residual_by_convolution", 4, 11), ("split_by_attribute", 2, 2),
            ], 0, 0,
        ),
        # padding in front of one unit and behind another: they cannot change places
        (
            [
                ("residual_padded", 1, 9), ("overwritten", 1, 5), ("repeated", 5, 2),
                ("gated_halves", 10, 3), ("shared", 3, 4),
            ], 1, 4,
        ),
        # padding behind a chunk behind a shuffle
        ([("shuffled", 0, 1), ("chunked", 0, 0), ("residual_padded", 1, 1)], 1, 3),
        # a depthwise layer of a concatenation of halves
        ([("chunked", 0, 0), ("concatenated", 0, 1), ("depthwise", 1, 0)], 3, 0),
        # branches stacked along the channels, then added
        ([("stacked", 1, 1), ("squeezed", 0, 0)], 2, 1),
        # written over, then split by attributes
        ([("overwritten", 1, 0), ("split_by_attribute", 3, 0), ("grouped", 1, 1)], 1, 5),
        # two streams stacked, then side by side: one length, so their units leave together
        ([("unbound_and_stacked", 3, 3)], 3, 0),
        # a GroupNorm whose channels all come from one unit
        ([("pixel_shuffled", 4, 9), ("group_normed_first", 2, 6)], 1, 0),
        # what is written over is as wide as half of a padded stream
        ([("padded", 4, 0), ("overwritten", 7, 3)], 1, 7),
        ([("padded", 8, 6), ("filled_by_slices", 10, 6)], 1, 5),
        # a scale that follows from the head's width where scores are faint
        ([("tied", 11, 3), ("packed_attention", 10, 3)], 1, 4),
        # a single channel is all that is left of a stream
        ([("transposed_grouped", 0, 0), ("split_by_literal", 7, 3)], 3, 4),
        # padded channels under a softmax
        ([("padded", 4, 4), ("over_channels", 7, 10), ("shared", 8, 1)], 3, 1),
    ],
)  # fmt: skip
def test_networks_that_were_wrong_once_or_might_be(
    sequence: list[Gene], tail: int, skip: int
) -> None:
    for seed in range(3):
        check(sequence, tail, skip, seed)
