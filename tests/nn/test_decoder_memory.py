"""No product reads outside of its arrays; where there is no AVX-512 the results are the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="guards memory with mprotect")
@pytest.mark.parametrize(
    "settings",
    [{"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
    ids=["bounds checked", "plain processor"],
)
def test_every_panel_stays_inside_and_agrees(settings, tmp_path) -> None:
    if "NUMBA_BOUNDSCHECK" in settings:  # Numba keeps code of processors apart, but not this
        settings = {**settings, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-m", "tests.nn.decoder_guarded"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0 and found.stdout == "inside\n", found.stderr
