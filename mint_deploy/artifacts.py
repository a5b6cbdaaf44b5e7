"""The values that flow between the stages: frozen, keyword-only, each of them also a file.

    sample  -> Moments          moments.npz
    score   -> Importance       scores.npz
    plan    -> PruningPlan      plan.json
    cut     -> (model, plan)    slim.safetensors
    export  -> ExportedModel    model.onnx, deploy.json
    build   -> Engine           engine.plan, engine.json
    bench   -> Measurement      measurements.jsonl

Standard library and numpy only: this file travels to the board. How a value becomes JSON or
npz stands in :mod:`mint_deploy.files`.

History of the formats (``schema`` in every file):
    1  first
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Comparison",
    "Constant",
    "ConsumerMoments",
    "Cost",
    "Engine",
    "ExportedModel",
    "GroupImportance",
    "Importance",
    "Machine",
    "Measurement",
    "Member",
    "Moments",
    "PooledRows",
    "PlanGroup",
    "PlanLayer",
    "Positions",
    "PruningPlan",
    "ScaleFold",
    "Statistic",
    "TaskSpec",
    "TensorSpec",
]

SCHEMA = 1

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output: name, shape (first entry is the batch) and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a network costs for ONE sample: multiply-adds, parameters, bytes.

    ``peak_activation_bytes`` is computed from the live tensors of the traced forward pass.
    """

    macs: int
    params: int
    weight_bytes: int
    peak_activation_bytes: int


# ---------------------------------------------------------------- sampling and scoring


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


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Where the units of a group live in one dimension of one parameter or buffer.

    ``index`` is ``[units, m]``: row ``u`` lists the ``m`` indices along ``dim`` that leave with unit
    ``u``; ``length`` is the full length of that dimension before the cut. ``reads``: the slices are a
    layer's input side, so that zeroing them masks the unit.
    """

    tensor: str
    dim: int
    length: int
    index: Ints
    reads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A whole number in a module's attribute that counts units, so it changes with the cut.

    ``attribute`` is ``module.path.name``, or ``module.path.name[2]`` for an entry of a tuple or list.
    Its new value is ``value`` less ``factor`` times the units removed in ``of``
    (``(group name, units of it that are counted)``).
    """

    attribute: str
    value: int
    of: tuple[tuple[str, tuple[int, ...]], ...]
    factor: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Where the units of a group lie along an axis of an activation; ``index`` is ``[units, m]``."""

    group: str
    index: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A place where the network computes over channels: after a cut, over those that stay.

    ``op`` is the operator's name in ATen, ``call`` counts its calls from 0, ``axis`` (negative) is the
    axis of its first operand along which ``length`` channels lie. Removing a unit is not the same
    as zeroing it there: a mean, a softmax or a product over channels changes.
    """

    op: str
    call: int
    axis: int
    length: int
    of: tuple[Positions, ...]
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFold:
    """The scale of attention follows from the head width, so a narrower head asks for a factor.

    The rows of ``tensor`` along dimension 0 that ``rows`` lists (those that stay) are multiplied by
    ``sqrt(width left / width before)``; ``positions`` says whose units the head's width is made of.
    """

    tensor: str
    rows: tuple[int, ...]
    width: int
    positions: tuple[Positions, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGroup:
    """One pruning group: ``keep`` is sorted; ``members`` say which slices each unit owns."""

    name: str
    size: int
    keep: tuple[int, ...]
    round_to: int
    members: tuple[Member, ...]

    @property
    def removed(self) -> tuple[int, ...]:
        """The units that leave."""
        kept = set(self.keep)
        return tuple(u for u in range(self.size) if u not in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLayer:
    """A layer before the cut: the ``shape`` of its weight, and its multiply-adds for one sample."""

    weight: str
    kind: str
    shape: tuple[int, ...]
    out_dim: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """Which units stay, in every group; enough to replay the cut on a fresh copy of the model.

    ``costed`` is the digest that ``after`` belongs to, ``structure`` a hash over all that is not to be
    edited by hand (see :mod:`mint_deploy.plan_file`); both may be empty.
    """

    model: str
    groups: tuple[PlanGroup, ...]
    constants: tuple[Constant, ...]
    frozen: Mapping[str, str]
    before: Cost
    after: Cost
    criterion: str
    estimator: str | None
    budget: Mapping[str, float]
    target: str
    seed: int
    inputs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    folds: tuple[ScaleFold, ...] = ()
    layers: tuple[PlanLayer, ...] = ()
    costed: str = ""
    structure: str = ""

    @property
    def restricted(self) -> frozenset[str]:
        """Names of the groups that a statistic over channels crosses: cut, they are not as if zeroed."""
        return frozenset(p.group for s in self.statistics for p in s.of)

    def slices(self, model: object = None) -> dict[str, dict[int, list[int]]]:  # noqa: ARG002  # symmetry
        """Return ``{parameter name: {dim: sorted removed indices}}``.

        ``model`` may be given for symmetry with the other verbs; the plan itself knows the slices.
        """
        out: dict[str, dict[int, list[int]]] = {}
        for group in self.groups:
            removed = list(group.removed)
            if not removed:
                continue
            for member in group.members:
                gone = member.index[removed].reshape(-1).tolist()
                out.setdefault(member.tensor, {}).setdefault(member.dim, []).extend(gone)
        return {name: {d: sorted(i) for d, i in sorted(dims.items())} for name, dims in out.items()}

    def digest(self) -> str:
        """Return a hash of what is kept: equal for equal cuts, whatever chose them."""
        body = [[g.name, g.size, list(g.keep)] for g in self.groups]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


# ---------------------------------------------------------------- delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """An ONNX file on disk, and how far its outputs are from PyTorch's (max relative error)."""

    path: str
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str
    bytes: int
    max_error: float
    parity_batches: tuple[int, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Something a runner can run: for ONNX Runtime the ONNX file itself, for TensorRT a plan file."""

    path: str
    runtime: str
    precision: str
    sha256: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    builder: Mapping[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Who measured: hardware, its state, and the versions that matter. ``None``: not readable here."""

    hostname: str
    system: str
    cpu: str
    cores: float
    memory_bytes: int
    python: str
    versions: Mapping[str, str]
    board: str | None = None
    gpu: str | None = None
    governor: str | None = None
    frequency_mhz: float | None = None
    load_average: float | None = None
    virtualization: str | None = None
    power_mode: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fields that must agree before two clock figures may be compared."""
        return {
            "hostname": self.hostname,
            "cpu": self.cpu,
            "cores": self.cores,
            "board": self.board,
            "gpu": self.gpu,
            "governor": self.governor,
            "power_mode": self.power_mode,
            "python": self.python,
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What was measured: the hashable key under which measurements may be compared."""

    label: str
    sha256: str
    runtime: str
    precision: str
    scenario: str
    batch: int
    threads: int
    inputs: tuple[TensorSpec, ...]
    flags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """RAW latencies in nanoseconds, one tuple per process restart; all else is derived from them.

    ``nulls`` says for each figure that is missing why it is missing.
    """

    task: TaskSpec
    machine: Machine
    restarts_ns: tuple[tuple[int, ...], ...]
    warmup_ns: tuple[int, ...]
    peak_rss_bytes: int | None
    import_rss_bytes: int | None
    load_ns: tuple[int, ...]
    converged: bool
    started: str
    partner: str | None = None
    energy_mj: float | None = None
    nulls: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``ratio`` = time of B / time of A from interleaved restarts, with a t interval at ``confidence``."""

    a: str
    b: str
    ratio: float
    low: float
    high: float
    confidence: float
    restarts: int
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracy of one network on one data part; ``low`` and ``high`` are a 95 % Wilson interval.

    ``per_class`` maps class name -> fraction right. Without labels ``top1`` is the agreement with
    the dense network and ``measure`` says so (``"top1"`` or ``"agreement"``).
    """

    measure: str
    part: str
    top1: float
    low: float
    high: float
    samples: int
    per_class: Mapping[str, float] = field(default_factory=dict)
    flipped: int | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
