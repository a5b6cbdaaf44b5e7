"""Operators over positions leave channels alone; operators over channels freeze them and say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from indexing_nets import CASES, Regions, build
from masking import cut_error, random_keep
from rule_nets import unit
from test_rules import of_stem
from torch import Tensor, nn

from mint_deploy.plan import make_plan
from mint_deploy.trace import trace
from mint_deploy.verify import prove


@pytest.mark.parametrize("name", CASES)
def test_positions_pass_and_channels_stay(name: str) -> None:
    case = CASES[name]
    model, x = build(name)
    graph = trace(model, x)
    sizes, reasons = of_stem(graph)
    assert sizes == sorted(case.stem)
    assert bool(reasons) == bool(case.why)
    assert not case.why or any(case.why in r and "indexing_nets.py:" in r for r in reasons), reasons
    plan = make_plan(graph, random_keep(graph, seed=len(name), least=0.3))
    assert cut_error(model, plan, (x,)) < 1e-10
    _, _, proof = prove(model, plan, x)
    assert proof.max_error < 1e-10
    assert all(g.status == "proven" for g in proof.groups.values())


@pytest.fixture
def operators() -> Iterator[torch.library.Library]:
    """Stand-ins with torchvision's schemas and names, so that its rules run without it."""
    library = torch.library.Library("mintdeploytest", "DEF")
    library.define("roi_align(Tensor x, Tensor rois) -> Tensor")
    library.define("ps_roi_align(Tensor x, Tensor rois) -> Tensor")
    library.define(
        "deform_conv2d(Tensor x, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int sh, int sw,"
        " int ph, int pw, int dh, int dw, int groups, int offset_groups, bool use_mask) -> Tensor"
    )

    def align(x: Tensor, rois: Tensor) -> Tensor:
        start = rois[:, 1:3].sigmoid().mean().to(x)
        return x[rois[:, 0].long()][:, :, 2:6, 1:5] * start

    def by_position(x: Tensor, rois: Tensor) -> Tensor:
        return x[rois[:, 0].long()][:, :, :4, :4].flip(1).clone()

    def deform(
        x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *_: int
    ) -> Tensor:
        y = torch.nn.functional.conv2d(x, weight, bias, padding=1)
        return y * (1 + offset.mean(1, keepdim=True))

    library.impl("roi_align", align, "CPU")
    library.impl("ps_roi_align", by_position, "CPU")
    library.impl("deform_conv2d", deform, "CPU")
    yield library
    library._destroy()


def test_regions_keep_their_channels(operators: torch.library.Library) -> None:
    torch.manual_seed(0)
    inputs = (
        torch.randn(2, 3, 8, 8),
        torch.tensor([[0, 1, 1, 5, 5], [1, 2, 2, 7, 7], [0, 0, 0, 3, 3.0]]),
    )
    model = Regions(torch.ops.mintdeploytest.roi_align).eval()
    graph = trace(model, inputs)
    assert of_stem(graph) == ([16], [])
    _, _, proof = prove(model, make_plan(graph, random_keep(graph)), inputs)
    assert proof.max_error < 1e-10
    model = Regions(torch.ops.mintdeploytest.ps_roi_align).eval()
    free, reasons = of_stem(trace(model, inputs))
    assert not free
    assert "takes channels by position" in reasons[0]


class Deformed(nn.Module):
    """Offsets from a layer of their own move the taps of a convolution."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.offset = unit(3, 16), nn.Conv2d(16, 18 * groups, 3, padding=1)
        self.weight, self.bias = (
            nn.Parameter(torch.randn(12, 16, 3, 3)),
            nn.Parameter(torch.randn(12)),
        )
        self.last, self.head = unit(12, 8), nn.Linear(8, 5)
        self.offset_groups = [groups]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mask = torch.empty(0)
        x = torch.ops.mintdeploytest.deform_conv2d(
            x,
            self.weight,
            self.offset(x),
            mask,
            self.bias,
            1,
            1,
            1,
            1,
            1,
            1,
            1,
            self.offset_groups[0],
            False,
        )
        return self.head(self.last(x.relu()).mean((2, 3)))


def test_a_deformable_convolution_is_one_whose_offsets_stay(
    operators: torch.library.Library,
) -> None:
    torch.manual_seed(0)
    model, x = Deformed(1).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert of_stem(graph) == ([16], [])
    assert ("weight", 0) in {(m.tensor, m.dim) for g in graph.groups.values() for m in g.members}
    assert "says which positions 'deform_conv2d' takes" in graph.frozen["offset"]
    _, _, proof = prove(model, make_plan(graph, random_keep(graph, least=0.3)), x)
    assert proof.max_error < 1e-10
    grouped = trace(Deformed(2).eval(), x)
    assert not of_stem(grouped)[0]
    assert "deformable convolution in groups" in of_stem(grouped)[1][0]


def test_the_taps_that_make_one_channel_leave_together() -> None:
    model, x = build("folded_taps")
    graph = trace(model, x)
    (index,) = [
        m.index.tolist()
        for g in graph.groups.values()
        for m in g.members
        if (m.tensor, m.dim) == ("widen.weight", 0)
    ]
    assert index == [[4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3] for c in range(16)]
