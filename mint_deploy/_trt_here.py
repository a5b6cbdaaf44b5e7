"""What an engine depends on, read from this machine: versions, GPU, board image, power mode.

    facts(version) -> {"tensorrt", "cuda", "driver", "sm", "device", "l4t", "jetpack",
                       "power_mode", "tpc_pg_mask"}

What cannot be read has no entry. A power mode of a Jetson switches processors of the GPU off (the
mask of its texture processing clusters): an engine tuned in one mode is tuned for another GPU than
the one that runs in the next. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mint_deploy import _sysfs
from mint_deploy._trt_cuda import Cuda
from mint_deploy.artifacts import Machine
from mint_deploy.errors import MintDeployError
from mint_deploy.machine import probe

__all__ = ["facts", "memory", "shares_memory"]


def shares_memory(root: str | os.PathLike[str] = "/") -> bool:
    """Whether this is a Jetson, whose GPU has the memory of the CPU and none of its own."""
    return Path(root, "etc/nv_tegra_release").exists()


def memory(root: str | os.PathLike[str] = "/") -> tuple[int, int]:
    """Bytes of memory and of swap space that this machine has; 0 where unknown."""
    text = _sysfs.text(Path(root, "proc/meminfo")) or ""
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return sizes.get("MemTotal", 0), sizes.get("SwapTotal", 0)


def facts(
    version: str, *, machine: Machine | None = None, cuda: Cuda | None = None
) -> dict[str, str]:
    """Return what an engine that is built or loaded here depends on.

    Args:
        version: of TensorRT, as the library or ``trtexec`` says it.
        machine: who builds; probed where absent.
        cuda: the CUDA runtime in use; where absent it is loaded, if it is here.
    """
    machine = machine or probe()
    board = machine.details.get("jetson") or {}
    found: dict[str, object] = {
        "device": machine.gpu,
        "driver": (machine.details.get("gpu") or {}).get("driver_version"),
        "l4t": board.get("l4t"),
        "jetpack": board.get("jetpack"),
        "power_mode": machine.power_mode,
        "tpc_pg_mask": board.get("tpc_pg_mask"),
    }
    try:
        cuda = cuda or Cuda()
        found |= {"cuda": cuda.runtime_version(), "sm": cuda.sm(), "device": cuda.name()}
        found["driver"] = found["driver"] or f"CUDA {cuda.driver_version()}"
    except MintDeployError:
        # no CUDA runtime to ask: trtexec may have one linked in
        found["cuda"] = machine.versions.get("cuda")
    known = {name: str(value) for name, value in found.items() if value is not None}
    return {"tensorrt": version, **known}
