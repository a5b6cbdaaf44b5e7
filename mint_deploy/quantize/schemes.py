"""How numbers are stored in 8 bits, by what the target's kernels compute fast and exactly.

    symmetric      TensorRT               int8 activations, zero at 0; float bias; Q/DQ at inputs and residuals
    u8s8           x86 with VNNI or AMX   uint8 activations
    u8s8-reduced   any x86                uint8 activations, weights of 7 bits
    s8s8           Arm                    int8 activations with a zero point

Weights are int8, symmetric, with a scale for each output channel. Where nothing else is said, activations have a
zero point, biases are int32, and Q/DQ stands around every layer.

x86 without VNNI adds pairs of products in 16 bits: uint8 times int8 overflows there, uint8 times 7 bits does not
(ResNet-56 under ONNX Runtime on AVX2: 18.9 dB of signal to noise with 8 bits, 30.2 dB with 7).
TensorRT takes no zero points and no quantised bias; where a sum follows a convolution, the other summand is
quantised and the convolution's own output is not, so that both become one int8 kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mint_deploy.quantize.source import WEIGHTED
from mint_deploy.target import Target

__all__ = ["SCHEMES", "Scheme", "scheme_for"]

#: what ONNX Runtime's CPU kernels compute in 8 bits beside the weighted layers
_ARITHMETIC = (
    "Add",
    "Mul",
    "Concat",
    "AveragePool",
    "GlobalAveragePool",
    "LeakyRelu",
    "Sigmoid",
)
#: what hands 8-bit numbers on as they are
_PASSING = (
    "Relu",
    "Clip",
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Pad",
    "Resize",
)
#: ONNX Runtime has no 8-bit ConvTranspose on a CPU
_CPU_WEIGHTED = tuple(name for name in WEIGHTED if name != "ConvTranspose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to store numbers in 8 bits.

    ``layers``: the operators that are quantised, and may be left in float one by one. ``passing``: those that
    follow their neighbours. ``lean``: Q/DQ at inputs alone, no zero points, float bias, weights with a pair of Q
    and DQ: what TensorRT reads.
    """

    name: str
    activation: str
    weight: str = "int8"
    symmetric: bool = False
    reduce_range: bool = False
    lean: bool = False
    layers: tuple[str, ...] = (*_CPU_WEIGHTED, *_ARITHMETIC)
    passing: tuple[str, ...] = _PASSING

    @property
    def watched(self) -> tuple[str, ...]:
        """The operators whose tensors need a range."""
        return (*self.layers, *self.passing, *(["Add"] if self.lean else []))

    def settings(self) -> Mapping[str, str]:
        """What travels in the file."""
        return {
            "activations": f"{self.activation}, {'symmetric' if self.symmetric else 'zero point'}",
            "weights": f"{self.weight}, symmetric, per channel, {7 if self.reduce_range else 8} bits",
            "bias": "float32" if self.lean else "int32",
            "placement": "inputs and residuals" if self.lean else "around every layer",
        }

    def arguments(self) -> dict[str, Any]:
        """What ONNX Runtime's quantiser is asked for (its ``extra_options``)."""
        options: dict[str, Any] = {
            "ActivationSymmetric": self.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not self.lean,
            "AddQDQPairToWeight": self.lean,
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},
        }
        if self.lean:
            options["OpTypesToExcludeOutputQuantization"] = list(self.layers)
        return options


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="symmetric",
            activation="int8",
            symmetric=True,
            lean=True,
            layers=WEIGHTED,
            passing=(),
        ),
        Scheme(name="u8s8", activation="uint8"),
        Scheme(name="u8s8-reduced", activation="uint8", reduce_range=True),
        Scheme(name="s8s8", activation="int8"),
    )
}


def scheme_for(target: Target) -> Scheme:
    """Return the scheme of a target: by its runtime and family, and ``cpu_isa`` where it names VNNI or AMX."""
    if target.runtime == "tensorrt" or target.family in ("gpu", "jetson"):
        return SCHEMES["symmetric"]
    if target.family == "arm-cpu":
        return SCHEMES["s8s8"]
    isa = (target.cpu_isa or "").lower()
    return SCHEMES["u8s8" if "vnni" in isa or "amx" in isa else "u8s8-reduced"]
