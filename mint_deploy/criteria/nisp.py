r"""Importance of the responses, propagated back from the output (*NISP*, Yu et al. 2018).

With ``s`` the importance of a layer's outputs, that of its inputs is ``|W|^T s``, a bound on how far a change
there reaches the responses (their equation 11; activations and pooling have Lipschitz constant 1 and pass it
on). Layers are taken in the reverse of the order in which they first run, and a channel's importance is the sum
over its positions, so that

    Conv       s_in[c] = sum_o sum_k |W[o, c, k]| s_out[o]      exact for any stride, but for padding
    transposed the same with the mean over k                    exact where the stride is the kernel's width
    BatchNorm  s_in[c] = |gamma_c| / sqrt(var_c + eps) s_out[c]
    flatten, concatenation, average pooling, upsampling: sums over what is read
    residual   a stream's importance is what all its later readers pass back; a layer that adds to the stream sees
               what is read after it, and its own inputs, where they are the same stream, add to that: the paper's
               unrolled network, one layer's position after the other

All this is the gradient of the sum of the outputs in the network of absolute weights, which is how it is
tested.

A unit is as important as its responses together: one for each layer that produces it (a channel of a residual
stream has several), *normalised* where BatchNorm follows (``|gamma| s``: before that the filter's scale is
arbitrary, after it a channel that BatchNorm silences would look as good as any). Each group's losses sum to 1; the
paper cuts each layer by a given ratio: they are not comparable between groups. No data.

Approximations. The paper ranks the last hidden responses by feature selection (Inf-FS); here all outputs of the
network count the same, a response being an output that no layer reads. The graph knows which layers share a
channel, not the paths between them: a layer that maps a group onto itself (a depthwise convolution) is taken to
feed what reads the group until some layer writes to it again; a layer called several times is propagated
through once, where it first runs; gates (squeeze and excite) count as added. Which BatchNorm follows which
layer is read from the order of registration among those of the same channels; those left over (before a layer)
scale what the next layer reads. ``eps`` is PyTorch's 1e-5. Other norms are passed through; ``q, k, v`` of
attention count alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, Importance, Moments
from mint_deploy.criteria._batchnorms import norms_after, norms_before, numbers, sides_of
from mint_deploy.criteria._ranking import ranked
from mint_deploy.graph import Graph, Layer

__all__ = ["propagated", "score"]

#: what is above this is scaled down, everywhere alike: hundreds of layers overflow
HUGE = 1e100


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank units by the importance that the output passes back to them; the losses of a group sum to 1."""
    found = propagated(graph)
    groups = {
        name: ranked(name, found[name] / (found[name].sum() or 1.0))
        for name in graph.groups
        if name in found
    }
    return Importance(groups=groups, criterion="nisp", estimator=None, seed=seed, settings=settings)


def propagated(graph: Graph) -> dict[str, Floats]:
    """Return the importance of every unit of every group that is read ``[units]``, up to a factor for each."""
    sides, after = sides_of(graph), norms_after(graph)
    before = norms_before(graph, after)
    state = {n: _State(g.size) for n, g in (*graph.groups.items(), *graph.frozen_groups.items())}
    scaled = 0
    for weight, layer in reversed(list(graph.layers.items())):
        if layer.kind == "embedding":
            continue
        itself = not _mixes(graph, layer)
        out_dim, other = layer.out_dim, layer.in_dim
        if itself and layer.kind == "conv_transpose":  # its units lie along the inputs
            out_dim, other = other, out_dim
        outs = sides.get((weight, out_dim), {})
        s = np.full(graph.shapes[weight][out_dim], HUGE**-scaled)
        for name, index in outs.items():
            seen = state[name].seen(HUGE**-scaled, itself=itself)
            s[index] = seen[:, None] / index.shape[1]
        norm = after.get(weight)
        if norm is not None:
            s = s * norm.scale
        for name, index in outs.items():
            state[name].responses.append((s[index].sum(1), scaled))
        if norm is not None:
            s = s / norm.deviation
        W = np.moveaxis(np.abs(numbers(graph.tensors[weight])), (out_dim, other), (0, 1))
        taps = W.reshape(*W.shape[:2], -1)
        W = taps.mean(2) if layer.kind == "conv_transpose" else taps.sum(2)
        passed = s * W.sum(1) if itself else s @ W
        if weight in before:
            passed = passed * before[weight].scale / before[weight].deviation
        for name, index in (outs if itself else sides.get((weight, layer.in_dim), {})).items():
            state[name].read(passed[index].sum(1), itself=itself)
        if max((p.peak for p in state.values()), default=0.0) > HUGE:
            scaled += 1
            for place in state.values():
                place.shrink()
    return {n: p.total() for n, p in state.items() if p.responses and p.is_read}


def _mixes(graph: Graph, layer: Layer) -> bool:
    """Whether a layer mixes channels (a depthwise convolution does not)."""
    inputs = graph.shapes[layer.weight][layer.in_dim]
    return layer.groups == 1 or (inputs if layer.in_dim else inputs // layer.groups) > 1


@dataclass
class _State:
    """How important a group's units are to what comes later.

    ``recent``: to the readers since the last layer that wrote to the group; ``beyond``: to what is after that one.
    """

    size: int
    beyond: Floats = field(init=False)
    recent: Floats = field(init=False)
    is_read: bool = False
    is_response: bool = False
    #: the importance of the units in each layer that produces them, and how often all was scaled down before
    responses: list[tuple[Floats, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.beyond, self.recent = np.zeros(self.size), np.zeros(self.size)

    def seen(self, one: float, *, itself: bool) -> Floats:
        """Return the importance of what a layer writes here: ``one`` where nothing reads it later."""
        if not self.is_read:
            if not self.is_response:
                self.beyond = np.full(self.size, one)
            self.is_response = True
            return self.beyond
        if itself:
            return self.recent
        self.beyond, self.recent = self.beyond + self.recent, np.zeros(self.size)
        return self.beyond

    def read(self, passed: Floats, *, itself: bool) -> None:
        """Add what a reader passes back; ``itself``: it stands between the units and their recent readers."""
        self.recent = passed if itself else self.recent + passed
        self.is_read = True

    @property
    def peak(self) -> float:
        """The largest entry."""
        return float(max(self.beyond.max(initial=0.0), self.recent.max(initial=0.0)))

    def shrink(self) -> None:
        """Scale down."""
        self.beyond, self.recent = self.beyond / HUGE, self.recent / HUGE

    def total(self) -> Floats:
        """Return the sum of the responses, on the scale of the last one found."""
        last = max(scaled for _, scaled in self.responses)
        return np.asarray(sum(s / HUGE ** min(3, last - scaled) for s, scaled in self.responses))
