"""What is seen of a network, and what its units are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ConsumerMoments",
    "Floats",
    "GroupImportance",
    "Importance",
    "Ints",
    "Moments",
    "PooledRows",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerMoments:
    """Second moments of the taps that one Conv or Linear reads, and the weights that read them.

    ``D = channels * taps``; tap ``c * taps + t`` is kernel position ``t`` of input channel ``c``.
    ``mean`` is ``[D]``, ``covariance`` ``[D, D]`` (centred, divided by ``rows``), both float64.
    ``weight`` is the dense layer's ``[outputs, D / groups]``; ``bias`` is the name of its bias, if any;
    ``normalised``: BatchNorm follows and absorbs a shift of its mean. A transposed convolution reads
    single positions (``taps = 1``) and its kernel positions count as outputs. ``sensitivity`` is the Fisher
    information ``[outputs, outputs]``: an error of covariance ``E`` at every position moves the network's
    output distribution by ``trace(sensitivity E) / 2`` nats.
    """

    name: str
    kind: str
    channels: int
    taps: int
    groups: int
    bias: str | None
    normalised: bool
    rows: int
    mean: Floats
    covariance: Floats
    weight: npt.NDArray[np.floating[Any]]
    sensitivity: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledRows:
    """Paired samples of one consumer: spatial means, the same image in the same row.

    ``inputs`` is ``[N, channels]``, what it reads (before its kernel); ``outputs`` ``[N, outputs]``, what it
    computes (with its bias, before what follows), both float32.
    """

    inputs: npt.NDArray[np.float32]
    outputs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What was seen of each consumer (key: its weight's name) on ``images`` samples.

    ``pooled`` has paired rows of each consumer where an estimator asked for them; ``gradients`` the mean
    gradient of the loss over the labelled images, for every parameter by name, where a criterion did.
    ``halves`` are the moments of either half of the images: what the sample leaves open. Networks whose
    covariances are large do not keep them.
    """

    consumers: Mapping[str, ConsumerMoments]
    images: int
    seed: int
    dataset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pooled: Mapping[str, PooledRows] = field(default_factory=dict)
    gradients: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    halves: tuple[Moments, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupImportance:
    """``loss [units]``: what is lost at the moment a unit leaves; ``order [units]``: first out first.

    ``spread [units]``: the standard error of ``loss`` that the sample leaves, where it is known.
    ``least``: so many units stay whatever the budget (the last ones of ``order``).
    """

    loss: Floats
    order: Ints
    spread: Floats | None = None
    least: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Group name -> its units' losses and elimination order, with the settings that made them.

    ``comparable``: a loss in one group weighs as much as the same loss in another. ``dependency``: for
    each consumer (its weight's name) the matrix ``[G_out, G_in]`` of what its groups of outputs take from
    its groups of inputs, where an estimator makes one.
    """

    groups: Mapping[str, GroupImportance]
    criterion: str
    estimator: str | None
    seed: int
    comparable: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    dependency: Mapping[str, Floats] = field(default_factory=dict)
