"""The conformance suite's own logic: its reference sees wrong cuts, agrees on right ones, and says which."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import absent, catalogue, ours, peer, table
from masking import masked_outputs
from nets import build
from torch import Tensor, nn

import mint_deploy as md


def half(
    name: str, seed: int = 1
) -> tuple[nn.Module, tuple[Tensor, ...], md.PruningPlan, nn.Module]:
    """A net of the tests, a plan that removes half of every group at random, and the cut network."""
    model, inputs = build(name)
    graph = md.trace(model, inputs)
    scores = md.score(graph, criterion="random", seed=seed)
    plan = md.plan(graph, scores, ratio=0.5, round_to=1)
    return model, inputs, plan, md.cut(model, plan)


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("name", ["resnet8", "c2f", "unet", "depthwise_twice", "channel_shuffle"])
def test_the_reference_agrees_with_exact_cuts_and_with_masking(name: str) -> None:
    model, inputs, plan, slim = half(name)
    assert plan.slices()
    wanted = absent.reference(model, plan.slices(), inputs)
    assert absent.relative_error(absent.outputs(slim, inputs), wanted) < 1e-12
    double = tuple(x.double() for x in inputs)
    zeroed = masked_outputs(copy.deepcopy(model).double(), plan, double)
    assert absent.relative_error(zeroed, wanted) < 1e-12


@pytest.mark.parametrize("name", ["resnet8", "c2f", "unet"])
def test_a_cut_with_one_wrong_channel_is_seen(name: str) -> None:
    model, inputs, plan, slim = half(name)
    wanted = absent.reference(model, plan.slices(), inputs)
    off = ours.control(slim, plan.slices(), absent.tensors_of(model), inputs, wanted)
    assert off > ours.SEEN * ours.TOLERANCE


def test_a_coupling_that_is_crossed_is_a_mismatch() -> None:
    model, inputs, plan, _ = half("resnet8")
    slices = {name: {d: list(i) for d, i in dims.items()} for name, dims in plan.slices().items()}
    name = next(n for n, dims in slices.items() if 1 in dims)
    gone = slices[name][1]
    stays = next(i for i in range(max(gone) + 2) if i not in gone)
    slices[name][1] = [*gone[1:], stays]
    found = ours.crossing(model, model, slices, inputs)
    assert found["verdict"] == "WRONG"
    assert "one side only" in found["error"]


def test_a_cut_whose_values_differ_is_wrong() -> None:
    model, inputs, plan, slim = half("unet")
    weight = next(p for p in slim.parameters() if p.dim() == 4)
    with torch.no_grad():
        weight[[0, 1]] = weight[[1, 0]]
    found = ours.crossing(model, slim, plan.slices(), inputs)
    assert found["verdict"] == "WRONG"
    assert "off by" in found["error"]


def test_another_shape_of_the_output_is_wrong() -> None:
    a = torch.ones(2, 3)
    assert absent.relative_error([a], [a[:, :2]]) == float("inf")
    assert absent.relative_error([a], [a]) == 0
    assert absent.relative_error([a * float("nan")], [a]) == float("inf")


class Norms(nn.Module):
    """Statistics over channels, attention, padding, softmax: what the reference counts anew."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.group = nn.GroupNorm(2, width)
        self.layer = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * 4)
        self.proj = nn.Linear(heads * 4, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, 5)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.conv(nn.functional.pad(x, (1, 1, 0, 0))))
        x = self.layer(nn.functional.pad(x, (0, 1)).flatten(2).transpose(1, 2))
        x = x * x.softmax(-1) + x.mean(-1, keepdim=True) - x.amax(-1, keepdim=True)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, 4)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return self.fc2(nn.functional.hardswish(self.fc1(x)))


def test_statistics_and_attention_count_what_is_present_alone() -> None:
    torch.manual_seed(0)
    dense = Norms(8, 3, 6).double().eval()
    catalogue.enliven(dense)
    stream = [1, 2, 5, 6]  # two of each half: the group norm's groups
    head, inner = [0, 2], [0, 4, 5]
    narrow = [4 * h + i for h in head for i in range(4)]
    packed = [12 * part + i for part in range(3) for i in narrow]
    kept = {
        "conv": [stream, None], "group": [stream], "layer": [stream], "qkv": [packed, stream],
        "proj": [stream, narrow], "fc1": [inner, stream], "fc2": [None, inner],
    }  # fmt: skip
    slim = Norms(4, 2, 3).double().eval()
    removed: dict[str, dict[int, list[int]]] = {}
    state = {}
    for name, x in dense.state_dict().items():
        for d, stays in enumerate(kept[name.partition(".")[0]][: x.dim()]):
            if stays is not None:
                removed.setdefault(name, {})[d] = [i for i in range(x.shape[d]) if i not in stays]
                x = x.index_select(d, torch.tensor(stays))
        state[name] = x
    slim.load_state_dict(state)
    inputs = [torch.randn(2, 3, 5, 5)]
    wanted = absent.reference(dense, removed, inputs)
    assert absent.relative_error(absent.outputs(slim, inputs), wanted) < 1e-12
    # ... which is not what zeroing the removed channels gives
    zeroed = absent.without(dense, removed)
    for p in zeroed.parameters():
        p.data = p.data.nan_to_num(0)
    assert absent.relative_error(absent.outputs(zeroed, inputs), wanted) > 1e-3


def test_an_output_with_absent_channels_is_a_mismatch() -> None:
    model = nn.Linear(3, 4)
    with pytest.raises(absent.Mismatch, match="output"):
        absent.reference(model, {"weight": {0: [1]}, "bias": {0: [1]}}, [torch.randn(2, 3)])


# ---------------------------------------------------------------- the two sides


def case(name: str) -> catalogue.Case:
    return catalogue.cases()[f"pattern/{name}"]


def test_the_engine_is_examined() -> None:
    row = ours.examine(case("c2f"))
    assert row["verdict"] == "exact"
    assert row["crossing"] < 1e-12 < ours.SEEN * ours.TOLERANCE < row["control"]
    assert abs(row["macs_kept"] - row["macs_kept_plan"]) < 1e-3
    assert set(row["cpu_seconds"]) == {"trace", "plan", "cut", "gate"}
    json.dumps(row)


def test_what_the_engine_refuses_is_a_verdict_and_no_crash() -> None:
    row = ours.examine(catalogue.Case(lambda: nn.Sequential(nn.Linear(4, 4), Argmax()), ((4,),)))
    assert row["verdict"] == "refused"
    assert "no floating tensor" in row["error"]


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def test_the_peer_is_judged_by_the_same_reference() -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (extra 'test')")
    plain = peer.examine(case("option_b"))
    assert plain["verdict"] == "exact"
    assert plain["macs_kept"] < 0.6
    shuffled = peer.examine(case("c2f"))
    assert shuffled["verdict"] in ("wrong", "crash")
    assert shuffled["error"]


def test_a_peer_that_mixes_channels_up_is_wrong() -> None:
    model, inputs, plan, _ = half("resnet8")
    numbered = copy.deepcopy(model).double()
    peer.number(numbered)
    theirs = md.cut(numbered, plan)
    assert peer.judge(model, copy.deepcopy(theirs), inputs)["verdict"] == "exact"

    def judged(change: Callable[[Tensor], None]) -> dict[str, Any]:
        made = copy.deepcopy(theirs)
        with torch.no_grad():
            change(next(p for p in made.parameters() if p.dim() == 4 and p.shape[1] > 3))
        return peer.judge(model, made, inputs)

    def swap(x: Tensor) -> None:
        x[:, [0, 1]] = x[:, [1, 0]]

    def double(x: Tensor) -> None:
        x[0, 0] = x[0, 1]

    assert judged(swap)["verdict"] == "wrong"
    assert "no block" in judged(double)["error"]


# ---------------------------------------------------------------- the catalogue and the table


def test_the_catalogue_covers_the_sources() -> None:
    names = list(catalogue.cases())
    assert len(names) == len(set(names)) >= 60
    assert {n.partition("/")[0] for n in names} == set(table.SOURCES)


def test_networks_are_lively_and_the_same_every_time() -> None:
    model, inputs = catalogue.build(case("c2f"))
    again, same = catalogue.build(case("c2f"))
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(inputs[0], same[0])
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert len(norm.running_var.unique()) == norm.num_features  # no two channels alike
    frozen = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(frozen.weight)
    catalogue.enliven(frozen)
    assert frozen.weight.std() > 0


def row(name: str, side: str = "ours", **given: object) -> dict[str, object]:
    made = {"name": name, "side": side, "engine": "x", "verdict": "exact", "cuttable": 1.0}
    return {**made, "crossing": 1e-15, "control": 0.1, "frozen": {}, "reasons": []} | given


def test_the_table_counts_and_cannot_be_broken_by_its_text(tmp_path: Path) -> None:
    rows = [
        row("zoo/a", macs_kept=0.25, rss_before_mb=100, peak_rss_mb=130, params=10),
        row("zoo/a", "peer", verdict="exact", macs_kept=0.3),
        row(
            "pattern/b",
            verdict="exact, rest frozen",
            cuttable=0.5,
            frozen={"g": "a|b <x> (in 'm.n', file.py:3)", "h": "a|b <x> (in 'm.o')"},
            reasons=[["a|b <x>", 2]],
        ),
        row("pattern/b", "peer", verdict="crash", error="line one\nline | two /srv/here/f.py"),
        row("zoo/c", verdict="WRONG", error="crossing: off by 0.1"),
        row("zoo/d", verdict="no power"),
    ]
    table.write(tmp_path, rows)
    text = (tmp_path / "conformance.md").read_text()
    assert "**4 architectures: 2 exact** (1 in whole, 1 with some groups frozen" in text
    assert "**WRONG: 1**, no power: 1." in text
    assert "torch-pruning on the same 2: exact 1, crash 1." in text
    assert "exact (30%)" in text
    assert "| 30 MB |" in text
    assert r"| a\|b \<x\> | 1 | pattern/b |" in text
    assert "/srv" not in text
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines() if "| a |" in line}
    assert widths == {len(table.HEADER) + 1}
    assert json.loads((tmp_path / "conformance.json").read_text())["kind"] == "Conformance"
