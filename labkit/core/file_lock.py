"""A lock between processes, held by a file and freed by the system when its process dies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none; there, nobody is kept out
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def exclusive(path: Path, wait: bool = True) -> Iterator[None]:
    """Wait for, then hold, the lock on the file `path`, which is made if need be and not changed.

    Raises:
        OSError: it cannot be created.
        BlockingIOError: somebody holds it, and `wait` is False.
    """
    with path.open("a") as handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
