"""ONNX Runtime's execution providers: their names, every option set, and why one cannot be used here.

A provider that a build of ONNX Runtime was compiled with is listed even where its libraries or the
GPU are missing, and then the session quietly runs on the CPU. So the driver is looked for first.
Options: onnxruntime.ai/docs/execution-providers, CUDA and TensorRT. float32 means float32: TF32,
which rounds to ten bits, is off unless it is asked for.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from typing import Any

from mint_deploy.errors import RuntimeMissing, UnknownName

__all__ = [
    "CPU",
    "CUDA",
    "NAMES",
    "TENSORRT",
    "chain",
    "library",
    "mend",
    "named",
    "options",
    "why_not",
]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
#: our short names
NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

_MEND = "pip install onnxruntime"
#: both packages hold the same module, so one must go before the other comes
_MEND_GPU = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"

_CUDA_OPTIONS = {
    "device_id": "0",
    "arena_extend_strategy": "kNextPowerOfTwo",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "do_copy_in_default_stream": "1",
    "enable_cuda_graph": "0",
    "prefer_nhwc": "0",
    "use_tf32": "0",
}
_TENSORRT_OPTIONS = {
    "device_id": "0",
    "trt_builder_optimization_level": "3",
    "trt_build_heuristics_enable": "0",
    "trt_cuda_graph_enable": "0",
    "trt_dla_enable": "0",
    "trt_max_workspace_size": str(1 << 30),
    "trt_sparsity_enable": "0",
    "trt_timing_cache_enable": "1",
}


def library() -> Any:
    """Import ONNX Runtime.

    Raises:
        RuntimeMissing: it is not installed, or does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing("onnxruntime", str(error), _MEND) from error
    return onnxruntime


def named(provider: str) -> str:
    """Return the full name of a provider given by its short or full name.

    Raises:
        UnknownName: neither; the nearest is suggested.
    """
    if provider in NAMES:
        return NAMES[provider]
    if not provider.endswith("ExecutionProvider"):
        raise UnknownName("execution provider", provider, [*NAMES, *NAMES.values()])
    return provider


def mend(provider: str) -> str:
    """Return the one command that brings a provider."""
    return _MEND_GPU if provider in (CUDA, TENSORRT) else _MEND


def why_not(provider: str) -> str | None:
    """Say why a provider cannot be used here, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    if provider == CPU:
        return None  # every build has it, and asking costs the import
    reasons = []
    try:
        ort = library()
    except RuntimeMissing as error:
        return error.why
    available = ort.get_available_providers()
    if provider not in available:
        reasons.append(f"it has no provider '{provider}' (it has: {', '.join(available)})")
    if provider in (CUDA, TENSORRT) and not _driver():
        reasons.append("there is no NVIDIA driver (libcuda.so.1 does not load)")
    return f"onnxruntime {ort.__version__}: {', and '.join(reasons)}" if reasons else None


def _driver() -> bool:
    """Whether NVIDIA's driver is here; the library of a driver alone starts nothing on the GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def options(provider: str, precision: str, wishes: Mapping[str, str]) -> dict[str, str]:
    """Return every option of a provider that moves a figure, as texts; ``wishes`` win.

    Args:
        provider: full name.
        precision: of the engine; TensorRT computes in fp16 or int8 only where it is told to.
        wishes: option -> value, in the provider's own names.
    """
    if provider == CUDA:
        return {**_CUDA_OPTIONS, **wishes}
    if provider == TENSORRT:
        asked = {
            "trt_fp16_enable": str(int(precision == "fp16")),
            "trt_int8_enable": str(int(precision == "int8")),
        }
        return {**_TENSORRT_OPTIONS, **asked, **wishes}
    return dict(wishes)


def chain(
    provider: str, settings: Mapping[str, str], *, refuse: bool
) -> list[tuple[str, dict[str, str]]]:
    """Return what a session is given: the provider, and those its nodes may fall back to.

    ``refuse``: nothing to fall back to is named; the CPU provider is always there by itself.
    """
    out = [(provider, dict(settings))]
    if provider == TENSORRT and not refuse:
        device = {"device_id": settings.get("device_id", "0")}
        out.append((CUDA, {**_CUDA_OPTIONS, **device}))
    return out
