"""Folders that are safe to write into: one holder, no leftovers, and a disk that may fill up."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from mint_deploy.errors import RunFolderError

__all__ = ["explain_full_disk", "is_leftover", "lock", "now", "remove", "sweep"]


def now() -> str:
    """Return the present moment in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def lock(folder: Path) -> int:
    """Hold ``folder`` by its ``.lock`` and return the descriptor; closing it lets go.

    Raises:
        RunFolderError: another process holds it (named), or it cannot be locked.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 100).decode(errors="replace").strip() or "another process"
        os.close(handle)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunFolderError(
                f"{folder} cannot be locked ({error.strerror}); use a folder on a local disk"
            ) from error
        raise RunFolderError(
            f"{folder} is in use by {holder}; wait until it is done, or name another folder "
            "with --out"
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} (since {now()})\n".encode(), 0)
    return handle


def is_leftover(path: Path) -> bool:
    """Whether this is a temporary file of :func:`mint_deploy.files.atomic`."""
    return path.name.startswith(".") and path.name.endswith(".part")


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left."""
    for place in (folder, folder / "checkpoints"):
        for path in place.glob(".*.part"):
            if is_leftover(path):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- a full disk


@contextlib.contextmanager
def explain_full_disk(folder: Path, stage: str) -> Iterator[None]:
    """Turn a full disk, in whatever library it shows, into one clear message.

    Raises:
        RunFolderError: the disk or the quota is full; what was finished is kept.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise RunFolderError(
            f"the disk that holds {folder} is full: stage '{stage}' could not write its files, "
            "and left none half-written; free some space, then repeat the command with --resume"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
