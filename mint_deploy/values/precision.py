"""A network in fewer bits: what was done to it, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mint_deploy.values.delivery import Accuracy

__all__ = ["Calibration", "FloatLayer", "Quantized"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The range of each float tensor on calibration samples.

    ``key`` is a hash of all that decides the ranges: the ONNX file, the samples, the method, whether
    ranges are symmetric. ``ranges``: tensor -> lowest and highest value that 8 bits have to cover.
    """

    key: str
    method: str
    samples: int
    symmetric: bool
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayer:
    """A layer that stays in float32 inside of a network of lower precision.

    ``snr_db``: signal-to-noise of the worst output where this layer alone is converted (None: not measured).
    """

    name: str
    operator: str
    reason: str
    snr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """An ONNX file of lower precision, and how far it is from the float32 file that it was made of.

    ``scheme`` is how numbers are stored (``u8s8``, ``u8s8-reduced``, ``s8s8``, ``symmetric``, ``float16``).
    ``before`` and ``after`` are the task metric on ``held_out`` samples; ``after`` carries the drop in points
    with its 95 % interval. ``snr_db``: output -> signal-to-noise ratio in decibels on real samples, the worst of
    ``batches``. ``damage``: layer -> signal-to-noise ratio where it alone is converted, where that was measured.
    ``float_macs``: share of the multiply-adds that stay in float32. ``kept``: whether ``max_drop`` holds (None:
    nothing to judge by); ``verdict`` says it in words.
    """

    path: str
    precision: str
    scheme: str
    sha256: str
    bytes: int
    source_sha256: str
    source_bytes: int
    calibration: str | None = None
    calibration_key: str | None = None
    samples: int = 0
    layers: int = 0
    float_layers: tuple[FloatLayer, ...] = ()
    float_macs: float | None = None
    before: Accuracy | None = None
    after: Accuracy | None = None
    max_drop: float | None = None
    kept: bool | None = None
    verdict: str = ""
    evaluations: int = 0
    snr_db: Mapping[str, float] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    damage: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
