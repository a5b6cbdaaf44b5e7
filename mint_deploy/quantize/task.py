"""A part of the data as the judge of converted files: the same measure that judges PyTorch networks.

made = quantize_file("model.onnx", samples_of(train), evaluate=judge_on(validation))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mint_deploy.evaluate import Metric, Outcome, evaluate
from mint_deploy.quantize.judge import Evaluate, Infer

if TYPE_CHECKING:
    from mint_deploy.data import Part

__all__ = ["OnnxModule", "judge_on", "samples_of"]


class OnnxModule(nn.Module):
    """An ONNX file where a module is wanted: ``[N, ...]`` -> the first output, on the CPU."""

    def __init__(self, infer: Infer, name: str) -> None:
        super().__init__()
        self._infer, self._name = infer, name

    def forward(self, x: Tensor) -> Tensor:
        """Run the file on a batch of any size."""
        found = self._infer({self._name: np.ascontiguousarray(x.detach().cpu().numpy())})
        return torch.from_numpy(np.asarray(next(iter(found.values()))))


class _Judge:
    """See :func:`judge_on`; remembers what the first network, the float32 one, answered."""

    def __init__(self, part: Part, name: str, metric: Metric | None, batch: int) -> None:
        self._part, self._name, self._metric, self._batch = part, name, metric, batch
        self._first: Outcome | None = None
        named = "top1" if metric is None else getattr(metric, "__name__", type(metric).__name__)
        self.measure = "agreement" if part.labels is None else str(named)

    def __call__(self, infer: Infer) -> np.ndarray[Any, np.dtype[np.float64]]:
        found = evaluate(
            OnnxModule(infer, self._name), self._part, metric=self._metric, batch=self._batch
        )
        if found.scores is not None:
            return found.scores
        self._first = self._first or found
        same = found.predictions == self._first.predictions
        return np.asarray(same.reshape(len(same), -1).mean(1), np.float64)


def judge_on(
    part: Part, *, name: str = "input", metric: Metric | None = None, batch: int = 250
) -> Evaluate:
    """Return an ``evaluate`` for :func:`mint_deploy.quantize.quantize_file`.

    Top-1 (or ``metric``) on a part with labels; on one without, the agreement with the first network it is
    called with.

    Args:
        part: held-out samples of a network with one input.
        name: of that input.
        metric: ``metric(outputs, y) -> [N]``, scores from 0 to 1.
        batch: samples at a time.
    """
    return _Judge(part, name, metric, batch)


def samples_of(part: Part, images: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[Any]]:
    """Return ``images`` samples of a part (or all, if fewer), as many of each class as there are."""
    chosen = part.balanced(images, seed)
    return np.concatenate([x.numpy() for x, _ in chosen.batches(256)])
