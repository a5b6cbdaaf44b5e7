"""How right a network is on a part of the data, with intervals, and what a cut has cost.

    dense   = evaluate(model, part)
    outcome = evaluate(slim, part, reference=dense)
    kept, text = promise(outcome, max_drop=0.5)

Accuracy has Wilson's interval; the drop from the dense to the slim network, which see the same
samples, has Tango's interval for paired proportions (:mod:`mint_deploy.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mint_deploy.artifacts import Accuracy
from mint_deploy.errors import ConfigError, DataError, ModelError
from mint_deploy.inference import evaluating, faster_layout, first_output
from mint_deploy.intervals import mean_interval, paired_interval, wilson

if TYPE_CHECKING:
    from mint_deploy.data import Part

__all__ = [
    "Metric",
    "Outcome",
    "evaluate",
    "paired_interval",
    "promise",
    "wilson",
]

#: ``metric(outputs [N, ...], y [N, ...]) -> [N]``: one score a sample, 0 (wrong) to 1 (right)
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a network answered on one part.

    ``predictions`` is ``[N]`` (class numbers), or ``[N, ...]`` where the output has positions
    (a segmentation map). ``scores [N]`` is what each sample scored, 0 to 1, and ``right [N]`` the
    same as booleans where every score is 0 or 1; both are None where there was nothing to score
    against (no labels and no reference).
    """

    accuracy: Accuracy
    predictions: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_] | None
    scores: npt.NDArray[np.float64] | None = None


# ---------------------------------------------------------------- scoring a batch


def _predict(logits: Tensor) -> Tensor:
    """``[N, C, ...]`` -> class numbers ``[N, ...]``; one logit alone says yes above zero."""
    if logits.ndim < 2:
        return (logits > 0).long()
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).long()
    return logits.argmax(1)


def _forward(model: nn.Module, x: Tensor, layout: torch.memory_format, name: str) -> Tensor:
    if x.ndim == 4:
        x = x.contiguous(memory_format=layout)
    try:
        return first_output(model(x))
    except RuntimeError as error:
        raise ModelError(
            f"the network failed on a batch {tuple(x.shape)} of '{name}': {error}; are these the "
            "samples, and is this the input size, that it was made for?"
        ) from error


def _check(logits: Tensor, part: Part, seen: int) -> None:
    if logits.ndim == 0:
        raise ModelError("the network returned a single number; expected logits [N, classes]")
    bad = torch.isnan(logits.reshape(len(logits), -1)).any(1)
    if bool(bad.any()):
        first = seen + int(bad.nonzero()[0])
        raise ModelError(
            f"the network's output is NaN (not a number) for sample {first} of '{part.name}' and "
            f"{int(bad.sum())} of its batch of {len(bad)}; look for NaN in its weights or "
            "BatchNorm statistics, and in the data"
        )


def _score(logits: Tensor, found: Tensor, y: Tensor, metric: Metric | None, name: str) -> Tensor:
    """Return what each sample scored, ``[N]`` float64 on the CPU."""
    if metric is not None:
        scores = metric(logits, y)
        if not isinstance(scores, Tensor) or scores.shape != y.shape[:1]:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigError(
                f"the metric returned {shape}, expected one score a sample: [{len(y)}]"
            )
        scores = scores.detach().double().cpu()
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ConfigError(
                f"the metric returned scores from {float(scores.min()):.4g} to "
                f"{float(scores.max()):.4g}; expected 0 (wrong) to 1 (right)"
            )
        return scores
    if y.is_floating_point() or y.shape != found.shape:
        raise DataError(
            f"the labels of '{name}' are {y.dtype} {tuple(y.shape)}, expected class numbers "
            f"{tuple(found.shape)}; pass a metric for other tasks"
        )
    classes = max(2, logits.shape[1]) if logits.ndim > 1 else 2
    if len(y) and int(y.max()) >= classes:
        raise DataError(
            f"'{name}' has label {int(y.max())}, but the network has {classes} classes "
            f"(labels 0 to {classes - 1}); are these the data of this network?"
        )
    return (found == y).reshape(len(y), -1).double().mean(1).cpu()


# ---------------------------------------------------------------- evaluate


def evaluate(
    model: nn.Module,
    part: Part,
    *,
    class_names: Sequence[str] | None = None,
    reference: Outcome | None = None,
    metric: Metric | None = None,
    device: str | torch.device = "cpu",
    batch: int = 250,
) -> Outcome:
    """Run ``model`` over ``part`` and count what is right.

    With labels the measure is top-1 (``metric``'s name where one is given; for outputs
    ``[N, C, ...]`` the share of positions that are right). Without labels it is the agreement with
    ``reference``, or with itself, 1 by definition, where none is given: that is the dense network.

    Args:
        model: any module; its modes and its device are as before afterwards.
        part: the samples, in their own order.
        class_names: names for the per-class figures; numbers where None.
        reference: the dense network's outcome on the same part. Adds ``flipped`` (predictions that
            changed) and, with labels, the drop in points with its 95 % paired interval.
        metric: ``metric(outputs, y) -> [N]`` scores between 0 and 1, in place of top-1.
        device: where to run.
        batch: samples at a time.

    Raises:
        ModelError: the output is NaN, or is no tensor.
        DataError: the part is empty, its labels do not fit, or ``reference`` is of another part.
        ConfigError: the metric returns something else, or the device is not here.
    """
    found, scores, labels, seen = [], [], [], 0
    layout = None
    with evaluating(model, device) as place, torch.no_grad():
        for x, y in part.batches(batch) if len(part) else ():
            x = x.to(place)
            layout = layout or faster_layout(model, x)
            logits = _forward(model, x, layout, part.name)
            _check(logits, part, seen)
            seen += len(logits)
            answer = _predict(logits)
            found.append(answer.cpu())
            if y is not None:
                scores.append(_score(logits, answer, y.to(place), metric, part.name))
                labels.append(y)
    if not seen:
        raise DataError(f"part '{part.name}' is empty; at least one sample is needed")
    predictions = torch.cat(found).numpy()
    if reference is not None and (
        reference.accuracy.part != part.name or reference.predictions.shape != predictions.shape
    ):
        raise DataError(
            f"the reference is of '{reference.accuracy.part}' {reference.predictions.shape}, "
            f"the predictions are of '{part.name}' {predictions.shape}; both must be of one part"
        )
    if labels:
        measure = "top1" if metric is None else getattr(metric, "__name__", type(metric).__name__)
        return _labelled(
            measure, part.name, predictions, torch.cat(scores).numpy(), torch.cat(labels).numpy(),
            class_names, reference,
        )  # fmt: skip
    return _unlabelled(part.name, predictions, class_names, reference)


def _labelled(
    measure: str,
    name: str,
    predictions: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    class_names: Sequence[str] | None,
    reference: Outcome | None,
) -> Outcome:
    samples = len(scores)
    binary = bool(np.isin(scores, (0.0, 1.0)).all())
    low, high = wilson(int(scores.sum()), samples) if binary else mean_interval(scores, 0.0, 1.0)
    flipped = drop = drop_low = drop_high = None
    if reference is not None:
        if reference.scores is None or reference.accuracy.measure != measure:
            raise DataError(
                f"the reference measured '{reference.accuracy.measure}', here it is '{measure}'; "
                "evaluate the dense network with the same labels and metric"
            )
        flipped = int((predictions != reference.predictions).sum())
        change = reference.scores - scores
        if binary and reference.right is not None:
            lost, gained = int((change > 0).sum()), int((change < 0).sum())
            drop = 100 * (lost - gained) / samples
            bounds = paired_interval(lost, gained, samples)
        else:
            drop = 100 * float(change.mean())
            bounds = mean_interval(change, -1.0, 1.0)
        drop_low, drop_high = 100 * bounds[0], 100 * bounds[1]
    return Outcome(
        accuracy=Accuracy(
            measure=measure,
            part=name,
            top1=float(scores.mean()),
            low=low,
            high=high,
            samples=samples,
            per_class=_per_class(scores, labels, class_names),
            flipped=flipped,
            drop=drop,
            drop_low=drop_low,
            drop_high=drop_high,
        ),
        predictions=predictions,
        right=scores.astype(bool) if binary else None,
        scores=scores,
    )


def _unlabelled(
    name: str,
    predictions: npt.NDArray[np.int64],
    class_names: Sequence[str] | None,
    reference: Outcome | None,
) -> Outcome:
    samples = len(predictions)
    accuracy = Accuracy(
        measure="agreement", part=name, top1=1.0, low=1.0, high=1.0, samples=samples
    )
    if reference is None:
        return Outcome(accuracy=accuracy, predictions=predictions, right=None)
    same = predictions == reference.predictions
    scores = same.reshape(samples, -1).mean(1, dtype=np.float64)
    binary = same.ndim == 1
    low, high = wilson(int(scores.sum()), samples) if binary else mean_interval(scores, 0.0, 1.0)
    return Outcome(
        accuracy=Accuracy(
            measure="agreement",
            part=name,
            top1=float(scores.mean()),
            low=low,
            high=high,
            samples=samples,
            per_class=_per_class(scores, reference.predictions, class_names),
            flipped=int(same.size - same.sum()),
        ),
        predictions=predictions,
        right=scores.astype(bool) if binary else None,
        scores=scores,
    )


def _per_class(
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    class_names: Sequence[str] | None,
) -> dict[str, float]:
    """Return class name -> mean score, for the classes that occur, in their order."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return {}
    classes, where = np.unique(labels, return_inverse=True)
    means = np.bincount(where, weights=scores) / np.bincount(where)
    named = class_names or ()
    return {
        named[c] if 0 <= c < len(named) else str(c): float(mean)
        for c, mean in zip(classes.tolist(), means, strict=True)
    }


# ---------------------------------------------------------------- the promise


def promise(outcome: Outcome | Accuracy, max_drop: float) -> tuple[bool, str]:
    """Say whether the accuracy drop stays within ``max_drop`` points, and how sure that is.

    It is kept when the measured drop is at most ``max_drop``. Without labels the drop cannot be
    measured, but it cannot exceed the share of predictions that changed: that share must stay
    within ``max_drop``.

    Raises:
        ConfigError: ``max_drop`` is not a number.
        DataError: the outcome was not measured against a reference.
    """
    accuracy = outcome.accuracy if isinstance(outcome, Outcome) else outcome
    if not math.isfinite(max_drop):
        raise ConfigError(f"the accuracy drop allowed is {max_drop}; expected points, such as 0.5")
    where = f"on '{accuracy.part}' ({accuracy.samples} samples)"
    if accuracy.measure == "agreement" and accuracy.flipped is not None:
        changed = round(100 * (1 - accuracy.top1), 9)
        low, high = 100 * (1 - accuracy.high), 100 * (1 - accuracy.low)
        kept = changed <= max_drop
        said = (
            f"{changed:.2f} % of the predictions {where} differ from the dense network's "
            f"(95 % interval {low:.2f} to {high:.2f}), and without labels the drop is only known "
            "not to exceed that"
        )
    elif accuracy.drop is not None and accuracy.drop_low is not None:
        kept = accuracy.drop <= max_drop
        low = accuracy.drop_low
        high = accuracy.drop if accuracy.drop_high is None else accuracy.drop_high
        said = (
            f"{accuracy.measure} {where} dropped by {accuracy.drop:.2f} points "
            f"(95 % interval {low:.2f} to {high:.2f})"
        )
    else:
        raise DataError(
            f"the accuracy {where} was measured without a reference, so no drop is known; "
            "evaluate with reference=the dense network's outcome"
        )
    text = f"{'kept' if kept else 'broken'}: {said}; at most {max_drop:g} points were promised"
    if low <= max_drop < high:
        text += "; the interval straddles that limit: more held-out samples could turn it"
    return kept, text
