"""What a folder of files is: name -> SHA-256 and bytes, and what differs from it on arrival.

Standard library only: this file may travel to the board.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mint_deploy import files

__all__ = ["differences", "listing"]


def listing(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return ``{name: {"sha256": ..., "bytes": ...}}`` of files in a folder, sorted by name."""
    return {
        name: {"sha256": files.sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }


def differences(folder: Path, listed: Mapping[str, Any]) -> list[str]:
    """Say what is missing or altered in ``folder``; a file that is not listed does not matter."""
    found = []
    for name, entry in sorted(listed.items()):
        pure = PurePosixPath(name)
        if pure.is_absolute() or len(pure.parts) != 1 or pure.name in ("", ".", ".."):
            found.append(f"the list names '{name}', which is no file of this folder")
            continue
        path = folder / name
        wanted = entry.get("sha256") if isinstance(entry, Mapping) else None
        if not path.is_file():
            found.append(f"{name} is missing")
        elif (digest := files.sha256(path)) != wanted:
            found.append(f"{name} has SHA-256 {digest[:12]}, expected {str(wanted)[:12]}")
    return found
