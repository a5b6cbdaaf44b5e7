"""What lower precision costs in the task's own measure, on held-out samples that both networks see.

    evaluate(infer) -> [N]      one score a sample, 0 (wrong) to 1 (right); or one number for all of them

``infer`` takes input name -> ``[N, ...]`` for any N and gives output name -> ``[N, ...]``. Without such a function
the measure is the agreement with the float32 network: how often the largest of the first output's entries
``[N, C]`` is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import Accuracy
from mint_deploy.errors import ConfigError
from mint_deploy.intervals import mean_interval, paired_interval, wilson
from mint_deploy.quantize.network import Arrays, Network

__all__ = ["Evaluate", "Infer", "Judge"]

Infer = Callable[[Arrays], dict[str, np.ndarray[Any, np.dtype[Any]]]]
Evaluate = Callable[[Infer], npt.ArrayLike]

_PART = "held out"
_Scores = npt.NDArray[np.float64]


class Judge:
    """Compares networks with the float32 one.

    Args:
        reference: the float32 network.
        evaluate: the task's measure, or None for the agreement on ``samples``.
        samples: input name -> ``[N, ...]``, used where there is no ``evaluate``.

    Raises:
        ConfigError: ``evaluate`` returns something else than scores from 0 to 1.
    """

    def __init__(self, reference: Network, evaluate: Evaluate | None, samples: Arrays) -> None:
        self._evaluate, self._samples = evaluate, samples
        self._classes: npt.NDArray[Any] | None = None
        self.evaluations = 0
        self.before: Accuracy | None = None
        self.measure = "agreement"
        if evaluate is not None:
            self.measure = str(getattr(evaluate, "measure", "score"))
            self._scores = _scores(evaluate(reference.infer))
            self.before = _accuracy(self.measure, self._scores)
            return
        self._classes = _classes(reference.infer(samples))
        if self._classes is not None:
            self._scores = np.ones(len(self._classes))
            self.before = _accuracy(self.measure, self._scores)

    @property
    def able(self) -> bool:
        """Whether there is anything to judge by."""
        return self.before is not None

    def after(self, network: Network) -> Accuracy:
        """Judge a converted network; ``drop`` is in points, positive where it is worse."""
        self.evaluations += 1
        if self._evaluate is not None:
            scores = _scores(self._evaluate(network.infer))
        else:
            found = _classes(network.infer(self._samples))
            scores = np.asarray(found == self._classes, np.float64)
        if scores.shape != self._scores.shape:
            raise ConfigError(
                f"evaluate gave {self._scores.size} scores for the float32 network and {scores.size} now; it has "
                "to judge the same samples each time"
            )
        return _accuracy(self.measure, scores, self._scores)


def _classes(outputs: Arrays) -> npt.NDArray[Any] | None:
    """The class of each sample ``[N]``, or None where the first output is no ``[N, C]`` of scores."""
    first = next(iter(outputs.values()))
    if first.ndim != 2 or first.shape[1] < 2 or first.dtype.kind != "f":
        return None
    classes: npt.NDArray[Any] = first.argmax(1)
    return classes


def _scores(given: npt.ArrayLike) -> _Scores:
    scores = np.atleast_1d(np.asarray(given, np.float64))
    if scores.ndim != 1 or not scores.size or not ((scores >= 0) & (scores <= 1)).all():
        seen = f"from {scores.min():.4g} to {scores.max():.4g}" if scores.size else "that are none"
        raise ConfigError(
            f"evaluate returned values {list(scores.shape)} {seen}; expected one score a sample, 0 (wrong) to "
            "1 (right)"
        )
    return scores


def _accuracy(measure: str, scores: _Scores, reference: _Scores | None = None) -> Accuracy:
    """Make an Accuracy of scores, with the drop from ``reference`` where that is given."""
    samples = len(scores)
    binary = bool(np.isin(scores, (0.0, 1.0)).all()) and samples > 1
    low, high = wilson(int(scores.sum()), samples) if binary else mean_interval(scores, 0.0, 1.0)
    drop = drop_low = drop_high = None
    flipped = None
    if reference is not None:
        change = reference - scores
        drop = 100 * float(change.mean())
        lost, gained = int((change > 0).sum()), int((change < 0).sum())
        paired = binary and bool(np.isin(reference, (0.0, 1.0)).all())
        if samples > 1:
            flipped = lost + gained
            bounds = (
                paired_interval(lost, gained, samples)
                if paired
                else mean_interval(change, -1.0, 1.0)
            )
            drop_low, drop_high = 100 * bounds[0], 100 * bounds[1]
    return Accuracy(
        measure=measure,
        part=_PART,
        top1=float(scores.mean()),
        low=low,
        high=high,
        samples=samples,
        flipped=flipped,
        drop=drop,
        drop_low=drop_low,
        drop_high=drop_high,
    )
