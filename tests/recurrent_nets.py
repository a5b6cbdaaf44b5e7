"""Networks with recurrent layers, one pattern each; see test_recurrent.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tagger(nn.Module):
    """``[N, T, 12]`` -> a projection, a recurrent part, a linear layer on what ``last`` says."""

    def __init__(
        self, recurrent: nn.Module, out: int, body: Callable[[Any, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.project, self.recurrent = nn.Linear(12, 16), recurrent
        self.hidden, self.head = nn.Linear(out, 8), nn.Linear(8, 5)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, F.relu(self.project(x)))
        return self.head(F.relu(self.hidden(y)))


def last_step(net: Any, x: Tensor) -> Tensor:
    return net.recurrent(x)[0][:, -1]


def last_state(net: Any, x: Tensor) -> Tensor:
    _, state = net.recurrent(x)
    state = state[0] if isinstance(state, tuple) else state
    return state.transpose(0, 1).flatten(1)


def time_first(net: Any, x: Tensor) -> Tensor:
    return net.recurrent(x.transpose(0, 1))[0].mean(0)


def given_state(net: Any, x: Tensor) -> Tensor:
    h = torch.zeros(net.recurrent.num_layers, x.shape[0], net.width, dtype=x.dtype)
    return net.recurrent(x, (h, h.clone()))[0][:, -1]


def own_size(net: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(1, x.shape[0], net.recurrent.hidden_size)
    return net.recurrent(x, h)[0][:, -1]


def literal_state(net: Any, x: Tensor) -> Tensor:
    return net.recurrent(x, torch.zeros(1, x.shape[0], 10, dtype=x.dtype))[0][:, -1]


def learned_state(net: Any, x: Tensor) -> Tensor:
    return net.recurrent(x, net.start.expand(-1, x.shape[0], -1).contiguous())[0][:, -1]


def encoded_state(net: Any, x: Tensor) -> Tensor:
    return net.recurrent(x, torch.tanh(net.encode(x.mean(1)))[None])[0][:, -1]


def two_encoders(net: Any, x: Tensor) -> Tensor:
    first = torch.stack([torch.tanh(net.one(x[:, 0])), torch.tanh(net.two(x[:, 0]))])
    return net.recurrent(x, first)[0][:, -1]


def packed(net: Any, x: Tensor) -> Tensor:
    lengths = torch.tensor([6, 4])[: len(x)]
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    y, _ = net.recurrent(rows)
    return nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0].sum(1)


def step_by_step(net: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], net.recurrent.hidden_size)
    for t in range(3):
        h = net.recurrent(x[:, t], h)
    return h


def lstm_step_by_step(net: Any, x: Tensor) -> Tensor:
    state = None
    for t in range(3):
        state = net.recurrent(x[:, t], state)
    return state[0]


def half_of_units(net: Any, x: Tensor) -> Tensor:
    return net.recurrent(x)[0][:, -1, 5:]


def residual(net: Any, x: Tensor) -> Tensor:
    return (x + net.recurrent(x)[0])[:, -1]


@dataclass(frozen=True)
class Recurrent:
    """``units``: how many of the layer's hidden units can leave; ``why``: words of the reason if none."""

    make: Callable[[], nn.Module]
    out: int
    body: Callable[[Any, Tensor], Tensor] = last_step
    units: int = 10
    why: str = ""
    parts: Callable[[], dict[str, Any]] = dict


def lstm(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: nn.LSTM(16, 10, batch_first=True, **settings)


def gru(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: nn.GRU(16, 10, batch_first=True, **settings)


NETS: dict[str, Recurrent] = {
    "lstm": Recurrent(lstm(), 10),
    "lstm_without_bias": Recurrent(lstm(bias=False), 10),
    "lstm_deep": Recurrent(lstm(num_layers=3, dropout=0.5), 10),
    "lstm_both_ways": Recurrent(lstm(bidirectional=True, num_layers=2), 40, last_state),
    "lstm_time_first": Recurrent(lambda: nn.LSTM(16, 10), 10, time_first),
    "lstm_given_state": Recurrent(lstm(num_layers=2), 10, given_state, parts=lambda: {"width": 10}),
    "lstm_packed": Recurrent(lstm(bidirectional=True), 20, packed),
    "lstm_residual": Recurrent(lambda: nn.LSTM(16, 16, batch_first=True), 16, residual, 16),
    "lstm_projected": Recurrent(lstm(proj_size=4), 4, units=0, why="projected LSTM"),
    "lstm_half": Recurrent(lstm(), 5, half_of_units, 5, "written in the code"),
    "gru": Recurrent(gru(), 10),
    "gru_both_ways": Recurrent(gru(bidirectional=True), 20, last_state),
    "gru_own_size": Recurrent(gru(), 10, own_size),
    "gru_literal_state": Recurrent(gru(), 10, literal_state, 0, "written in the code"),
    "gru_learned_state": Recurrent(
        gru(), 10, learned_state, parts=lambda: {"start": nn.Parameter(torch.randn(1, 1, 10))}
    ),
    "gru_encoded_state": Recurrent(
        gru(), 10, encoded_state, parts=lambda: {"encode": nn.Linear(16, 10)}
    ),
    "gru_two_encoders": Recurrent(
        gru(num_layers=2),
        10,
        two_encoders,
        parts=lambda: {"one": nn.Linear(16, 10), "two": nn.Linear(16, 10)},
    ),
    "rnn": Recurrent(lambda: nn.RNN(16, 10, batch_first=True), 10),
    "rnn_relu": Recurrent(lambda: nn.RNN(16, 10, 2, "relu", batch_first=True), 10),
    "lstm_cell": Recurrent(lambda: nn.LSTMCell(16, 10), 10, lstm_step_by_step),
    "gru_cell": Recurrent(lambda: nn.GRUCell(16, 10), 10, step_by_step),
    "rnn_cell": Recurrent(lambda: nn.RNNCell(16, 10), 10, step_by_step),
}


def build(name: str) -> tuple[Tagger, Tensor]:
    case = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Tagger(case.make(), case.out, case.body)
        for part, value in case.parts().items():
            setattr(net, part, value)
        return net.eval(), torch.randn(2, 6, 12)
