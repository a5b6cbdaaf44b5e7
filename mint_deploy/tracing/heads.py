"""Attention: a view divides a layer's outputs into heads, and either whole heads leave or their widths.

``view(b, n, heads, width)`` can adapt along one of its axes. Which one is wanted shows only later, in the
product of queries and keys: what it multiplies head by head is the *heads* axis, what it sums over is the
*width*. So the network is traced once with a guess; :func:`turned` says which views to read the other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["HEADS", "WIDTH", "Views", "turned"]

HEADS, WIDTH = "heads", "width"


@dataclass
class Views:
    """The views of one trace that can adapt along more than one axis, by the number of their call."""

    #: call number -> steps to the left (-1) or right (1) among the candidates
    turns: Mapping[int, int] = field(default_factory=dict)
    wanted: str = HEADS
    calls: int = 0
    _guessed: set[int] = field(default_factory=set)
    _seen: dict[int, tuple[Tensor, list[int], int]] = field(default_factory=dict)
    _attended: dict[int, str] = field(default_factory=dict)

    def choose(self, candidates: list[int], guess: int, labels: Tensor) -> int:
        """Return the axis along which this view adapts."""
        at = candidates.index(guess)
        self._seen[self.calls] = (torch.unique(labels.reshape(-1)), candidates, at)
        moved = at + self.turns.get(self.calls, 0)
        return candidates[moved] if 0 <= moved < len(candidates) else guess

    def attend(self, labels: Tensor, how: str) -> None:
        """A product of two activations takes these labels as heads, or sums over them (width)."""
        met = torch.unique(labels.reshape(-1))
        for call, (nodes, _, _) in self._seen.items():
            if bool(torch.isin(met, nodes).any()):
                self._attended.setdefault(call, how)

    def take_for_heads(self, guess: int, left: int) -> int:
        """Guess ``left`` of a view of the last axis, which is how heads are made, not shuffled channels."""
        self._guessed.add(self.calls)
        return left if self.wanted == HEADS else guess

    @property
    def mistaken(self) -> set[int]:
        """Views that were taken for heads, and that no product of activations reads."""
        return self._guessed - set(self._attended) if self.wanted == HEADS else set()

    @property
    def attended(self) -> dict[int, str]:
        """Views that some product of activations reads, and as what."""
        return dict(self._attended)

    def neighbours(self, call: int) -> tuple[bool, bool]:
        """Whether the guess of a view has a candidate to its left, and one to its right."""
        _, candidates, at = self._seen[call]
        return at > 0, at + 1 < len(candidates)


def turned(views: Views, wanted: str) -> dict[int, int]:
    """Return which views to read the other way so that ``wanted`` leaves."""
    out = {}
    for call, how in views.attended.items():
        left, right = views.neighbours(call)
        if how != wanted:
            if wanted == HEADS and left:
                out[call] = -1
            elif wanted == WIDTH and right:
                out[call] = 1
    return out | dict.fromkeys(views.mistaken, 1)
