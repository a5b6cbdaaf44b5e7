"""Where a process runs: in a container, on a virtual machine, or on the metal. Standard library."""

from __future__ import annotations

import re
from pathlib import Path

from mint_deploy import _sysfs

__all__ = ["virtualization"]

#: makers of virtual machines, as the firmware names them: Arm has no hypervisor flag
_VIRTUAL = re.compile(
    r"QEMU|KVM|VMware|VirtualBox|innotek|Xen|Google|Amazon EC2|Microsoft.*Virtual|OpenStack|Parallels"
)


def virtualization(root: Path, hypervisor: bool) -> str | None:
    """Return ``container docker``, ``machine KVM`` ..., both joined by ``in``; None on the metal.

    ``hypervisor`` is the flag of /proc/cpuinfo.
    """
    layers = []
    container = _container(root)
    if container is not None:
        layers.append(f"container {container}")
    product = _sysfs.text(root / "sys/class/dmi/id/product_name")
    vendor = _sysfs.text(root / "sys/class/dmi/id/sys_vendor") or ""
    kind = _sysfs.text(root / "sys/hypervisor/type")
    named = _VIRTUAL.search(f"{vendor} {product or ''}") and not (product or "").endswith(".metal")
    if "microsoft" in (_sysfs.text(root / "proc/sys/kernel/osrelease") or "").lower():
        layers.append("machine WSL")
    elif hypervisor or kind or named:
        name = product or kind
        layers.append(f"machine {name}" if name else "machine (hypervisor flag)")
    return " in ".join(layers) or None


def _container(root: Path) -> str | None:
    """Which kind of container this is: by its marker file, by what systemd left, by its groups."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if told := _sysfs.text(root / "run/systemd/container"):
        return told.split()[0]
    found = re.search(r"(docker|kubepods|lxc)", _sysfs.text(root / "proc/1/cgroup") or "")
    return found[1] if found else None
