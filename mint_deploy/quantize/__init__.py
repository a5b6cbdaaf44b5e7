"""ONNX files in INT8 (explicit Q/DQ) and in float16, with a promise about what that may cost.

made = quantize_file("model.onnx", samples, target="jetson", evaluate=scores_of, max_drop=0.5)
made.path, made.scheme, made.after.drop, made.float_layers, made.verdict

source.py       the float32 file, prepared         schemes.py      how a target stores numbers
samples.py      real samples, checked              calibration.py  ranges of tensors, kept in a file
qdq.py half.py  the conversions                    judge.py fidelity.py  what they cost
search.py       which layers stay float            convert.py      all of it together
"""

from __future__ import annotations

from mint_deploy.quantize.calibration import METHODS
from mint_deploy.quantize.convert import PRECISIONS, quantize_file
from mint_deploy.quantize.schemes import SCHEMES, Scheme, scheme_for
from mint_deploy.values.precision import Calibration, FloatLayer, Quantized

__all__ = [
    "METHODS",
    "PRECISIONS",
    "SCHEMES",
    "Calibration",
    "FloatLayer",
    "Quantized",
    "Scheme",
    "quantize_file",
    "scheme_for",
]
