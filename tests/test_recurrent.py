"""LSTM, GRU, RNN, cells and tables: cut and proven, or frozen with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from masking import masked_outputs, outputs, random_keep
from recurrent_nets import NETS, build
from torch import Tensor, nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.graph import Graph
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace
from mint_deploy.verify import prove


def hidden(graph: Graph, tensor: str, dim: int) -> tuple[int, list[str]]:
    """Free units along one dimension of a tensor, and the reasons of the frozen ones."""
    free = [
        g.size
        for g in graph.groups.values()
        if (tensor, dim) in {(m.tensor, m.dim) for m in g.members}
    ]
    why = [
        graph.frozen[n]
        for n, g in graph.frozen_groups.items()
        if (tensor, dim) in {(m.tensor, m.dim) for m in g.members}
    ]
    return sum(free), why


def recurrent_error(model: nn.Module, plan: PruningPlan, x: Tensor) -> float:
    """Cut against dense, whose recurrent weights are zeroed by hand at the columns that the plan removes."""
    model = copy.deepcopy(model).double()
    dense = copy.deepcopy(model)
    own = dict(dense.named_parameters())
    with torch.no_grad():
        for name, dims in plan.slices().items():
            if name.startswith("recurrent.weight_"):
                own[name][:, dims.get(1, [])] = 0
    found = outputs(cut(model, plan), (x.double(),))
    wanted = masked_outputs(dense, plan, (x.double(),))
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)
    )


# PyTorch's own remark on projected LSTMs
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", NETS)
def test_hidden_units_leave_every_gate_together_or_stay(name: str) -> None:
    case = NETS[name]
    model, x = build(name)
    graph = trace(model, x)
    weight = "recurrent.weight_hh" + ("" if isinstance(model.recurrent, nn.RNNCellBase) else "_l0")
    units, why = hidden(graph, weight, 1)
    assert units == case.units
    assert (not why) == (not case.why)
    assert not case.why or any(case.why in reason for reason in why)
    assert hidden(graph, "project.weight", 0)[0] == 16 or name == "lstm_projected"
    plan = make_plan(graph, random_keep(graph, seed=1))
    assert recurrent_error(model, plan, x) < 1e-12
    slim, done, proof = prove(model, plan, x)
    assert proof.max_error < 1e-10
    assert all(g.status == "proven" for g in proof.groups.values())
    own = {(weight, 1)}
    gone = [len(g.removed) for g in done.groups if own & {(m.tensor, m.dim) for m in g.members}]
    assert slim.recurrent.hidden_size == model.recurrent.hidden_size - sum(gone)
    assert slim.recurrent.input_size == slim.project.out_features


def test_gates_layers_and_directions_lose_the_same_positions() -> None:
    model, x = build("lstm_both_ways")
    graph = trace(model, x)
    (group,) = [g for g in graph.groups.values() if "recurrent.weight_hh_l0" in g.producers]
    places = {(m.tensor, m.dim): m.index.tolist() for m in group.members}
    gates = [[c, c + 10, c + 20, c + 30] for c in range(10)]
    for end in ("l0", "l0_reverse", "l1", "l1_reverse"):
        assert places[f"recurrent.weight_ih_{end}", 0] == gates
        assert places[f"recurrent.weight_hh_{end}", 0] == gates
        assert places[f"recurrent.bias_hh_{end}", 0] == gates
        assert places[f"recurrent.weight_hh_{end}", 1] == [[c] for c in range(10)]
    assert places["recurrent.weight_ih_l1", 1] == [[c, c + 10] for c in range(10)]
    assert places["hidden.weight", 1] == [[c, c + 10, c + 20, c + 30] for c in range(10)]


def test_a_slim_layer_describes_itself_and_goes_on() -> None:
    model, x = build("lstm_given_state")
    graph = trace(model, x)
    keep: dict[str, Any] = {n: range(g.size - 3) for n, g in graph.groups.items()}
    slim, _, _ = prove(model, make_plan(graph, keep), x)
    assert (slim.recurrent.hidden_size, slim.recurrent.input_size, slim.width) == (7, 13, 7)
    assert all(
        a is b
        for a, b in zip(slim.recurrent._flat_weights, slim.recurrent.parameters(), strict=True)
    )
    slim.train()(x).sum().backward()
    assert all(p.grad is not None for p in slim.parameters())
    again = trace(slim.eval(), x)
    assert {g.size for g in again.groups.values()} == {13, 7, 5}
    prove(slim, make_plan(again, random_keep(again)), x)


# ---------------------------------------------------------------- tables


class Words(nn.Module):
    """Word and place tables, an LSTM, and a layer back to words that may share the table."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 12), nn.Embedding(6, 12)
        self.widen, self.narrow = nn.Linear(12, 20), nn.Linear(20, 12)
        self.back = nn.Linear(12, 30, bias=False)
        if tied:
            self.back.weight = self.words.weight

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.words(numbers) + self.places(torch.arange(numbers.shape[1]))
        return self.back(x + self.narrow(torch.relu(self.widen(x))))


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_loses_columns_and_never_rows(tied: bool) -> None:
    torch.manual_seed(0)
    model, numbers = Words(tied=tied).eval(), torch.randint(30, (2, 6))
    graph = trace(model, numbers)
    assert hidden(graph, "words.weight", 1) == (12, [])
    assert hidden(graph, "words.weight", 0)[0] == 0
    plan = make_plan(graph, random_keep(graph, seed=2))
    slim, _, proof = prove(model, plan, numbers)
    assert proof.max_error < 1e-10
    assert slim.words.num_embeddings == 30
    assert slim.words.embedding_dim == slim.places.embedding_dim == slim.back.in_features < 12
    assert (slim.back.weight is slim.words.weight) == tied
    assert all(layer.positions == 0 for layer in graph.layers.values() if layer.kind == "embedding")


def test_bags_of_words_are_a_table_too() -> None:
    torch.manual_seed(0)
    for mode in ("mean", "sum", "max"):
        model = nn.Sequential(nn.EmbeddingBag(20, 9, mode=mode), nn.ReLU(), nn.Linear(9, 4)).eval()
        numbers = torch.randint(20, (3, 5))
        graph = trace(model, numbers)
        assert hidden(graph, "0.weight", 1) == (9, [])
        prove(model, make_plan(graph, random_keep(graph)), numbers)


def test_a_table_whose_rows_are_scaled_to_a_norm_stays() -> None:
    model = nn.Sequential(
        nn.Embedding(20, 8, max_norm=1.0), nn.Linear(8, 6), nn.Linear(6, 4)
    ).eval()
    graph = trace(model, torch.randint(20, (2, 5)))
    assert hidden(graph, "0.weight", 1)[0] == 0
    assert "written in the forward pass" in hidden(graph, "0.weight", 1)[1][0]
    assert hidden(graph, "1.weight", 0)[0] == 6
