"""Whatever network is cut twice by whatever plans: one plan equals both cuts, or is refused with a reason."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from masking import outputs, random_keep
from random_nets import KINDS, SIDE, Gene, assemble

from mint_deploy.compose import compose
from mint_deploy.errors import PlanError
from mint_deploy.plan_file import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace

gene = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 11), st.integers(0, 11))
genes = st.lists(gene, min_size=1, max_size=5)


@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(genes, st.integers(0, 3), st.integers(0, 7), st.integers(0, 2**16))
def test_two_cuts_are_one_or_said_not_to_be(
    sequence: list[Gene], tail: int, skip: int, seed: int
) -> None:
    net = assemble(sequence, tail=tail, skip=skip, seed=seed)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    graph = trace(net, x)
    if not graph.groups:
        event("all frozen")
        return
    first = make_plan(graph, random_keep(graph, seed))
    slim = cut(net, first)
    again = trace(slim, x)
    second = make_plan(again, random_keep(again, seed + 1))
    twice = cut(slim, second)
    try:
        composed = compose(first, second)
    except PlanError as refused:
        assert "keep both plans, one after the other" in str(refused)  # noqa: PT017  # few are refused
        event("refused")
        return
    at_once = cut(net, composed)
    wanted = twice.state_dict()
    assert at_once.state_dict().keys() == wanted.keys()
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    for a, b in zip(outputs(at_once, (x,)), outputs(twice, (x,)), strict=True):
        assert torch.equal(a, b)
    event("equal")
