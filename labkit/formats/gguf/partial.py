"""A file under another name until it is whole; one writer at a time, and no left-overs for ever.

The name is fixed, `.NAME.partial` beside the target: what a killed run left there is found and
written over by the next one. A lock, which the system takes from a killed process, tells such a
left-over from the work of a run that is still going on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from labkit.core.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not told apart
    fcntl = None


def partial_of(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


def open_partial(path: Path) -> BinaryIO:
    """Open the partial file of ``path``, empty and ours alone.

    Raises:
        StorageError: another run is writing the same file, or the place cannot be written to.
    """
    partial = partial_of(path)
    try:
        while True:
            file = partial.open("ab")
            if not _locked(file):
                file.close()
                raise StorageError(
                    "another run is writing this file",
                    where=str(path),
                    remedy="Wait for it to end, or name another file.",
                )
            if _is_still(partial, file):
                file.truncate(0)
                return file
            file.close()  # the other run ended, and renamed its file, since we opened it
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """What the system refused, as labkit's own error."""
    return StorageError(
        f"could not be written: {error}",
        where=str(path),
        remedy="Nothing half-written was left. Make room, or write somewhere else.",
    )


def _locked(file: BinaryIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the name still leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
