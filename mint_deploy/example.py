"""A small program for the bundle that runs the network from Python, with its own names, shapes and normalisation.

It is text to be read, copied and changed: no name of this package beyond what runs an engine. ONNX Runtime and
OpenVINO are called as their own documentation does; a TensorRT engine is run by the runner that travels in the
device zip, which needs neither PyTorch nor a CUDA package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pprint import pformat
from string import Template
from typing import Any

from mint_deploy.artifacts import ExportedModel

__all__ = ["EXAMPLE", "example"]

#: its name in the bundle
EXAMPLE = "example.py"

_TEXT = Template('''\
"""Run $file with $runtime.

    python3 example.py                one of the samples that came with the network
    python3 example.py picture.png    a picture (needs Pillow)
    python3 example.py pixels.npy     an array: [H, W, C] of 0 to 255, or the network's own input

Needs $needs.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
$constants

$open


def picture(path):
    """Return the pixels [H, W, C] of a picture, in the network's size."""
    from PIL import Image

    image = Image.open(path).convert("L" if SHAPE[1] == 1 else "RGB")
    image = image.resize((SHAPE[3], SHAPE[2]))
    return np.asarray(image).reshape(SHAPE[2], SHAPE[3], SHAPE[1])


def prepared(pixels):
    """Turn pixels [H, W, C] into the network's input [1, C, H, W], as in training."""
    x = pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255
    if MEAN is not None:
        x = x - np.array(MEAN, np.float32)[:, None, None]
    if STD is not None:
        x = x / np.array(STD, np.float32)[:, None, None]
    return x.astype(DTYPE)


def sample():
    """Return a sample that travelled with the network; it is normalised already."""
    with np.load(HERE / "parity.npz", allow_pickle=False) as stored:
        return stored[f"inputs.{INPUT}"][:1]


def load(argument):
    """Return the input that a command line asks for."""
    if argument is None:
        return sample()
    if argument.endswith(".npy"):
        values = np.load(argument, allow_pickle=False)
        return prepared(values) if values.ndim == 3 else values.astype(DTYPE)
    return prepared(picture(argument))


def main():
    x = load(sys.argv[1] if len(sys.argv) > 1 else None)
    if SHAPE[0] > 1:
        x = np.repeat(x[:1], SHAPE[0], axis=0)  # this file takes batches of SHAPE[0] alone
    if x.ndim != len(SHAPE) or any(e not in (-1, n) for e, n in zip(SHAPE, x.shape)):
        raise SystemExit(f"the network takes {INPUT} {list(SHAPE)} (-1: any), not {list(x.shape)}")
    scores = run(x)[0]
    best = np.argsort(scores.ravel())[::-1][:5]
    for i in best:
        name = CLASSES[i] if i < len(CLASSES) else i
        print(f"{scores.ravel()[i]:10.4f}  {name}")


if __name__ == "__main__":
    main()
''')

_ONNXRUNTIME = '''\
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = THREADS
session = onnxruntime.InferenceSession(
    str(HERE / FILE), options, providers=["CPUExecutionProvider"]
)


def run(x):
    """Return the network's first output."""
    return session.run([OUTPUT], {INPUT: x})[0]'''

_OPENVINO = '''\
import openvino

compiled = openvino.compile_model(
    HERE / FILE,
    "CPU",
    {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"},
)


def run(x):
    """Return the network's first output."""
    return compiled({INPUT: x})[OUTPUT]'''

_TENSORRT = '''\
sys.path.insert(0, str(HERE / "mint_deploy_device.pyz"))  # the runner of engines; nothing is installed
from mint_deploy import engine_file  # noqa: E402
from mint_deploy.runtimes import tensorrt  # noqa: E402

if not (HERE / FILE).is_file():
    raise SystemExit("first build the engine here: python3 mint_deploy_device.pyz build")
runner = tensorrt.runner(engine_file.read(HERE))  # refuses an engine of another machine


def run(x):
    """Return the network's first output."""
    with runner:
        return runner.infer({INPUT: x})[OUTPUT]'''

#: runtime -> how it is opened, the file it runs (None: the ONNX file), what has to be there
_WAYS = {
    "onnxruntime": (_ONNXRUNTIME, None, "numpy and onnxruntime"),
    "openvino": (_OPENVINO, None, "numpy and openvino"),
    "tensorrt": (
        _TENSORRT,
        "engine.plan",
        "numpy and TensorRT; first: python3 mint_deploy_device.pyz build",
    ),
}


def example(
    model: ExportedModel,
    file: str,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> str | None:
    """Return the program's text, or None where it would not be small: several inputs, or no picture.

    Args:
        model: what was exported; its first input and output are used, by name.
        file: the ONNX file's name in the bundle.
        runtime: what runs it; one that is not known here is shown with ONNX Runtime.
        threads: compute threads.
        mean: per channel, of the normalisation, on a scale of 0 to 1.
        std: as ``mean``.
        class_names: names of the outputs.
    """
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4 or not model.outputs:
        return None
    name = runtime if runtime in _WAYS else "onnxruntime"
    way, plan, needs = _WAYS[name]
    first = model.inputs[0]
    values: Mapping[str, Any] = {
        "FILE": plan or file,
        "INPUT": first.name,
        "OUTPUT": model.outputs[0].name,
        "SHAPE": tuple(first.shape),
        "DTYPE": first.dtype,
        "THREADS": threads,
        "MEAN": None if mean is None else [float(v) for v in mean],
        "STD": None if std is None else [float(v) for v in std],
        "CLASSES": [str(n) for n in class_names or ()],
    }
    constants = "\n".join(f"{key} = {_literal(value)}" for key, value in values.items())
    return _TEXT.substitute(
        file=plan or file, runtime=name, needs=needs, constants=constants, open=way
    )


def _literal(value: Any) -> str:
    """A Python literal, whatever a name holds."""
    return pformat(value, width=95, compact=True) if isinstance(value, list) else repr(value)
