"""A small bundle of real ONNX files, and the device program run in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import save_conv

from mint_deploy import device, files, plugins
from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.parity import Parity, write_parity


def _exported(path, onnx):
    return ExportedModel(
        path=onnx.name, opset=17, ir_version=8, sha256=files.sha256(onnx),
        bytes=onnx.stat().st_size, max_error=0.0, parity_batches=(1,),
        inputs=(TensorSpec(name="input", shape=(-1, 3, 8, 8)),),
        outputs=(TensorSpec(name="output", shape=(-1, 8)),),
    )  # fmt: skip


def make_bundle(folder: Path, **target) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {"input": np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)}
    outputs, models = {}, {}
    plugin = plugins.load("runtime", "onnxruntime")
    for name, file, channels in (("dense", "dense.onnx", 8), ("slim", "model.onnx", 4)):
        path = save_conv(folder / file, channels=channels)
        with plugin.runner(plugin.build(path)) as live:
            outputs[name] = live.infer(inputs)
        models[name] = _exported(folder, path)
    write_parity(folder / "parity.npz", Parity(inputs=inputs, outputs=outputs))
    body = {**models, "target": {"runtime": "onnxruntime", "precision": "fp32", **target}}
    files.write_json(folder / "deploy.json", body, kind="Deploy")
    return folder


def here(capsys, *arguments):
    """Run a command in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        device.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err
