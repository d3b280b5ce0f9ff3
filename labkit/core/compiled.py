"""Compiled loops are kept on disk; here is what Numba's keeping of them needs beside.

Numba looks at one file to see whether its code still holds: the file of the function that is
compiled, not those whose functions it calls. After an update that changes only such a file, the old
machine code would run. So a folder's kept code is dropped when any source file of the folder is
newer, or of another folder whose functions it calls.

And it numbers the files that it keeps. Two processes that compile different signatures of one
function at once give both the same number, and a third then runs the wrong code. So the files get
names that nobody else takes.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba.core.caching import IndexDataCacheFile

COMPILED = ("core", "kernels", "nn", "quantize")
"""The packages of labkit with functions that Numba compiles, or that those call."""


def drop_stale(folder: Path, *called: Path) -> int:
    """Remove Numba's kept code of the modules in ``folder`` if a source is newer; count the files.

    Args:
        called: folders with more sources: functions of theirs are compiled into the callers.

    Where nothing may be removed (a package that belongs to somebody else), Numba keeps its code
    elsewhere, and nothing is.
    """
    kept = [*folder.glob("__pycache__/*.nbi"), *folder.glob("__pycache__/*.nbc")]
    if not kept:
        return 0
    sources = (path for place in (folder, *called) for path in place.glob("*.py"))
    newest = max(path.stat().st_mtime_ns for path in sources)
    removed = 0
    # Another process may be removing the same files.
    with contextlib.suppress(PermissionError, FileNotFoundError):
        oldest = min(path.stat().st_mtime_ns for path in kept)
        for path in kept if oldest < newest else ():
            path.unlink()
            removed += 1
    return removed


def share_folders() -> None:
    """Let several processes keep code in one folder, at the same time.

    Each file of machine code gets a name of its own in place of Numba's next number. What is left
    of the race is harmless: an index that loses one of two entries, whose function is compiled
    again where it is missed.
    """
    from numba.core.caching import IndexDataCacheFile

    IndexDataCacheFile._data_name = _own_name  # type: ignore[method-assign]


def _own_name(cache: IndexDataCacheFile, number: int) -> str:
    """A file of ``cache`` (Numba's IndexDataCacheFile) for one more signature."""
    return f"{cache._index_name.removesuffix('.nbi')}.{uuid.uuid4().hex[:16]}.nbc"


def cache_for_tests(root: Path) -> Path:
    """A folder below ``root`` for the machine code of all processes of a test run.

    Its name changes with the sources that are compiled, so what it holds is never stale, not even
    where a source is edited while tests run. For NUMBA_CACHE_DIR.
    """
    labkit = Path(__file__).parents[1]
    sources = (path for name in COMPILED for path in (labkit / name).rglob("*.py"))
    return root / ".numba" / str(max(path.stat().st_mtime_ns for path in sources))
