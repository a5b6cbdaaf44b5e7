"""ONNX Runtime's TensorRT provider: the parts that TensorRT takes as engines, the rest on CUDA or the CPU.

An engine is built when a session opens and kept under a hash of the model, the versions, the flags
and the GPU, so that neither an old one is used nor the same one built twice. The engine that
TensorRT builds by itself is the runtime ``tensorrt``.
"""

from __future__ import annotations

import os
from typing import Any

from mint_deploy import _ort_providers
from mint_deploy.artifacts import Engine
from mint_deploy.runtimes import onnxruntime

__all__ = ["MEND", "build", "missing", "runner"]

MEND = _ort_providers.mend(_ort_providers.TENSORRT)


def missing() -> str | None:
    """Say why the provider cannot be used here, or None."""
    return _ort_providers.why_not(_ort_providers.TENSORRT)


def build(
    model: str | os.PathLike[str],
    target: object = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Engine:
    """See :func:`mint_deploy.runtimes.onnxruntime.build`."""
    return onnxruntime.build(
        model, target, out, runtime="onnxruntime_tensorrt", provider="tensorrt", **settings
    )


def runner(engine: Engine, *, threads: int = 1, **settings: Any) -> onnxruntime.OnnxRuntimeRunner:
    """See :func:`mint_deploy.runtimes.onnxruntime.runner`."""
    return onnxruntime.runner(engine, threads=threads, provider="tensorrt", **settings)
