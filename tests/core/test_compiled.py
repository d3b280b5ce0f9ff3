"""Kept machine code does not outlive a source that it was made from."""

import os
import re
import subprocess
import sys
from pathlib import Path

from numba.core.caching import IndexDataCacheFile

import labkit
from labkit.core.compiled import COMPILED, cache_for_tests, drop_stale, share_folders

PACKAGE = Path(labkit.__file__).parent
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


def test_two_processes_that_keep_code_at_once_do_not_exchange_it(tmp_path, monkeypatch):
    """Both read an empty index; the first writes its code when the second has done so."""
    share_folders()
    first, second, third = (IndexDataCacheFile(str(tmp_path), "f-1.py311", 1) for _ in range(3))
    monkeypatch.setattr(second, "_load_index", dict)
    keep = first._save_data

    def late(name, data):
        second.save("float64", "of floats")
        keep(name, data)

    monkeypatch.setattr(first, "_save_data", late)
    first.save("int64", "of integers")
    assert third.load("float64") == "of floats"
    assert third.load("int64") in (None, "of integers")
    third.save("int64", "of integers")
    assert third.load("int64") == "of integers" and third.load("float64") == "of floats"


def test_whoever_compiles_for_labkit_shares_folders():
    code = "import labkit.quantize; from numba.core.caching import IndexDataCacheFile as F; "
    code += "from labkit.core import compiled; assert F._data_name is compiled._own_name"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_processes_of_a_test_run_have_one_folder_for_these_sources(tmp_path):
    assert cache_for_tests(tmp_path).parent == tmp_path / ".numba"
    sources = [path for name in COMPILED for path in (PACKAGE / name).rglob("*.py")]
    assert cache_for_tests(tmp_path).name == str(max(path.stat().st_mtime_ns for path in sources))


def test_nothing_is_compiled_elsewhere():
    numba = re.compile(r"^(import|from) numba\b", re.M)
    using = {path for path in PACKAGE.rglob("*.py") if numba.search(path.read_text())}
    assert len(using) > 10
    assert {path.relative_to(PACKAGE).parts[0] for path in using} <= set(COMPILED)
