"""PyTorch's two ONNX exporters behind one function, with nothing said on the terminal.

Opset 18 and above goes through ``torch.export``; below, that exporter writes 18 without an error,
so the older one, which traces, is used.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from mint_deploy.errors import ModelError
from mint_deploy.face import Face
from mint_deploy.silence import silent

__all__ = ["LOWEST_NEW", "convert"]

#: the lowest opset that the exporter on top of ``torch.export`` really writes
LOWEST_NEW = 18


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Send the file descriptors 1 and 2 nowhere: the older exporter prints graphs from C++."""
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd, _ in kept:
            os.dup2(nowhere, fd)
        yield
    finally:
        for fd, copy in kept:
            os.dup2(copy, fd)
            os.close(copy)
        os.close(nowhere)


def convert(face: Face, batch: int, opset: int, dynamic: bool) -> Any:
    """Return the model as a ModelProto, by the exporter that writes ``opset``."""
    tensors = face.sized(batch)
    try:
        with silent(), torch.no_grad():
            new = opset >= LOWEST_NEW
            return (_by_torch_export if new else _by_tracing)(face, tensors, opset, dynamic)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), "")
        hint = "export it with a fixed batch, or " if dynamic else ""
        raise ModelError(
            f"PyTorch cannot export this model to ONNX (opset {opset}): "
            f"{type(cause).__name__}: {reason}; {hint}rewrite the layer that it names"
        ) from error


def _by_torch_export(face: Face, tensors: tuple[Tensor, ...], opset: int, dynamic: bool) -> Any:
    shapes = None
    if dynamic:
        open_batch = torch.export.Dim("batch", min=1)
        shapes = {"tensors": tuple({0: open_batch} if has else None for has in face.batched)}
    program = torch.onnx.export(
        face,
        tensors,
        dynamo=True,
        opset_version=opset,
        input_names=list(face.input_names),
        output_names=list(face.output_names),
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ModelError("torch.onnx.export returned nothing")
    return program.model_proto


def _by_tracing(face: Face, tensors: tuple[Tensor, ...], opset: int, dynamic: bool) -> Any:
    axes = None
    if dynamic:
        named = [n for n, has in zip(face.input_names, face.batched, strict=True) if has]
        axes = {name: {0: "batch"} for name in (*named, *face.output_names)}
    with tempfile.TemporaryDirectory() as folder, _mute():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            face,
            tensors,
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(face.input_names),
            output_names=list(face.output_names),
            dynamic_axes=axes,
        )
        return onnx.load(path)
