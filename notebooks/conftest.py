"""nbval compares what a notebook says; it does not compare pixels, markup, warnings or widget ids.

A figure and a widget are compared by their alt text, which is their plain form.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

NOT_COMPARED = ("stderr", "image/svg+xml", "text/html", "image/png")


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    if not getattr(options, "nbval", False):
        return
    if not options.nbval_sanitize_with:
        options.nbval_sanitize_with = str(Path(__file__).with_name("nbval_sanitize.cfg"))
    # The kernels inherit this: whoever runs the comparison keeps their own progress and model.
    home = tempfile.TemporaryDirectory(prefix="labkit-nbval-")
    config.add_cleanup(home.cleanup)
    os.environ["LABKIT_HOME"] = home.name
    os.environ.pop("LABKIT_MODEL", None)
    from labkit.core.compiled import cache_for_tests

    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_for_tests(Path(__file__).parents[1])))


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED
