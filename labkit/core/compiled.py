"""Compiled loops are kept on disk, and Numba looks at one file to see whether they still hold.

The file of the function that is compiled: not those whose functions it calls. After an update that
changes only such a file, the old machine code would run. So a folder's kept code is dropped when
any source file of the folder is newer, or of another folder whose functions it calls.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


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


def own_cache(root: Path, process: str) -> Path:
    """A folder below ``root`` for the machine code of one of several processes side by side.

    Numba numbers the files that it keeps. Two processes that compile different signatures of a
    function at once give both one number, and a third then runs the wrong code. The folder's name
    changes with the sources, so what it holds is never stale. For NUMBA_CACHE_DIR.
    """
    sources = Path(__file__).parents[1].rglob("*.py")
    newest = max(path.stat().st_mtime_ns for path in sources)
    return root / ".numba" / f"{newest}-{process}"
