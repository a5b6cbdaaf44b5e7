"""The versions that move a clock figure, found without importing any of the packages.

Packages by their metadata; torch's CUDA by its version file; on a board the libraries of JetPack by
their file names. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
from importlib import metadata
from pathlib import Path

from mint_deploy import _sysfs
from mint_deploy._version import __version__

__all__ = ["parse_torch_cuda", "versions"]

#: distribution -> the name shown; the first that is installed counts
_PACKAGES = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "onnxruntime-openvino": "onnxruntime",
    "torch": "torch",
    "tensorrt": "tensorrt",
    "openvino": "openvino",
}
#: libraries of a board's image, whose file names end in the version
_LIBRARIES = {"tensorrt": "libnvinfer.so.*", "cudnn": "libcudnn.so.*"}


def parse_torch_cuda(text: str) -> str | None:
    """Read torch/version.py: ``12.8``, or None where torch was built without CUDA."""
    found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def versions(root: Path) -> dict[str, str]:
    """Return name -> version; what is not installed has no entry."""
    found = {"mint-deploy": __version__}
    for package, name in _PACKAGES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.setdefault(name, metadata.version(package))
    if "torch" in found and (cuda := _torch_cuda()) is not None:
        found["torch-cuda"] = cuda
    with contextlib.suppress(AttributeError, OSError, ValueError):
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
        if libc.startswith("glibc "):
            found["glibc"] = libc.removeprefix("glibc ")
    for name, pattern in _LIBRARIES.items():
        for place in sorted(root.glob(f"usr/lib/*-linux-gnu/{pattern}")):
            version = place.name.partition(".so.")[2]
            if version.count(".") >= 2:
                found.setdefault(name, version)
    toolkit = _toolkit(_sysfs.text(root / "usr/local/cuda/version.json") or "")
    if toolkit is not None:
        found["cuda"] = toolkit
    return found


def _toolkit(text: str) -> str | None:
    """The CUDA toolkit's version from its version.json."""
    try:
        version = json.loads(text)["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(version)


def _torch_cuda() -> str | None:
    """The CUDA that torch was built for; the package is found, not imported."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    return parse_torch_cuda(_sysfs.text(Path(spec.origin).with_name("version.py")) or "")
