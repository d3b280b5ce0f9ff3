"""The whole suite is offline and leaves the learner's own progress alone."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

OFFLINE = Path(__file__).parent / "offline"


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported: guard this process, and every one that it starts."""
    home = tempfile.TemporaryDirectory(prefix="labkit-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ["LABKIT_HOME"] = home.name
    os.environ.pop("LABKIT_MODEL", None)
    if hasattr(config, "workerinput"):  # one of several processes: they share the first one's log
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:
        os.environ["LABKIT_BLOCKED_LOG"] = str(Path(home.name, "blocked.log"))
        # What killed processes and browsers leave goes with it; pytest keeps what a test failed on.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ["TMPDIR"] = tempfile.tempdir = home.name
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), inherited]))
    sys.path.insert(0, str(OFFLINE))
    # A sitecustomize of the system may be loaded already under that name.
    sys.modules.pop("sitecustomize", None)
    __import__("sitecustomize")
    from labkit.core.compiled import cache_for_tests

    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_for_tests(config.rootpath)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a connection was blocked and the failure swallowed."""
    if hasattr(session.config, "workerinput"):
        return
    log = Path(os.environ["LABKIT_BLOCKED_LOG"])
    if log.exists():
        print(f"\nThe network was asked for:\n{log.read_text()}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU skip without one."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """A command that chooses its number of threads does not choose that of the tests behind it."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    try:
        return (yield)
    finally:
        if torch and torch.get_num_threads() != before:
            torch.set_num_threads(before)
