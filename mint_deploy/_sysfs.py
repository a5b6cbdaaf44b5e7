"""Small files of /proc and /sys, and the commands of boards: what cannot be read is None.

Read with plain system calls: a look at the machine reads dozens of them between two restarts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ask", "head", "number", "text"]


def head(path: str | os.PathLike[str], size: int = 4096) -> str | None:
    """Return what one read of at most ``size`` bytes gives: enough for every one-line file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(handle, size).decode("utf-8", "replace").strip("\0 \n\t")
        finally:
            os.close(handle)
    except OSError:
        return None


def number(path: str | os.PathLike[str]) -> int | None:
    """Return the whole number (decimal, or 0x...) that a file holds."""
    found = head(path, 64) or ""
    try:
        return int(found, 16) if found[:2].lower() == "0x" else int(found)
    except ValueError:
        return None


def text(path: str | os.PathLike[str]) -> str | None:
    """Return the whole text of a file without NULs and blanks around it."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def ask(command: Sequence[str]) -> str | None:
    """Return what a command prints, or None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
