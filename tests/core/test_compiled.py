"""Kept machine code does not outlive a source that it was made from."""

import os
import subprocess
import sys

from labkit.core.compiled import drop_stale, own_cache

CALLED = "import numba\n\n@numba.njit(inline='always')\ndef value():\n    return {}\n"
CALLER = """import numba
from helper import value

@numba.njit(cache=True)
def compiled():
    return value()
"""


def _run(folder):
    code = (
        "from pathlib import Path; from labkit.core.compiled import drop_stale; "
        f"drop_stale(Path({str(folder)!r})); import caller; print(caller.compiled())"
    )
    beside = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    return int(subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, env=beside,
                              capture_output=True, text=True).stdout)  # fmt: skip


def test_a_changed_helper_is_compiled_again(tmp_path):
    (tmp_path / "helper.py").write_text(CALLED.format(1))
    (tmp_path / "caller.py").write_text(CALLER)
    assert _run(tmp_path) == 1
    kept = set(tmp_path.glob("__pycache__/*.nb*"))
    assert len(kept) == 2 and drop_stale(tmp_path) == 0
    (tmp_path / "helper.py").write_text(CALLED.format(2))
    assert _run(tmp_path) == 2


def test_nothing_kept_and_nothing_stale_removes_nothing(tmp_path):
    assert drop_stale(tmp_path) == 0
    (tmp_path / "a.py").write_text("")
    (tmp_path / "__pycache__").mkdir()
    kept = tmp_path / "__pycache__" / "a.f-1.py311.nbi"
    kept.write_text("")
    os.utime(tmp_path / "a.py", (1, 1))
    assert drop_stale(tmp_path) == 0 and kept.exists()
    os.utime(kept, (0, 0))
    assert drop_stale(tmp_path) == 1 and not kept.exists()


def test_a_newer_source_of_a_folder_that_is_called_counts(tmp_path):
    callers, called = tmp_path / "callers", tmp_path / "called"
    (callers / "__pycache__").mkdir(parents=True)
    called.mkdir()
    kept = callers / "__pycache__" / "a.f-1.py311.nbi"
    for path, time in ((callers / "a.py", 1), (kept, 2), (called / "b.py", 3)):
        path.write_text("")
        os.utime(path, (time, time))
    assert drop_stale(callers) == 0
    assert drop_stale(callers, called) == 1 and not kept.exists()


def test_processes_side_by_side_keep_their_code_apart(tmp_path):
    one, two = own_cache(tmp_path, "gw0"), own_cache(tmp_path, "gw1")
    assert one != two and one.parent == two.parent
    assert own_cache(tmp_path, "gw0") == one
