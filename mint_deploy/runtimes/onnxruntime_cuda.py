"""ONNX Runtime's CUDA provider: an ONNX file on an NVIDIA GPU, float32 without TF32.

Inputs and outputs are arrays of the host: each call copies them there and back. What the provider
cannot run runs on the CPU, and is named in the engine's flag ``fallback``.
"""

from __future__ import annotations

import os
from typing import Any

from mint_deploy import _ort_providers
from mint_deploy.artifacts import Engine
from mint_deploy.runtimes import onnxruntime

__all__ = ["MEND", "build", "missing", "runner"]

MEND = _ort_providers.mend(_ort_providers.CUDA)


def missing() -> str | None:
    """Say why the provider cannot be used here, or None."""
    return _ort_providers.why_not(_ort_providers.CUDA)


def build(
    model: str | os.PathLike[str],
    target: object = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Engine:
    """See :func:`mint_deploy.runtimes.onnxruntime.build`."""
    return onnxruntime.build(
        model, target, out, runtime="onnxruntime_cuda", provider="cuda", **settings
    )


def runner(engine: Engine, *, threads: int = 1, **settings: Any) -> onnxruntime.OnnxRuntimeRunner:
    """See :func:`mint_deploy.runtimes.onnxruntime.runner`."""
    return onnxruntime.runner(engine, threads=threads, provider="cuda", **settings)
