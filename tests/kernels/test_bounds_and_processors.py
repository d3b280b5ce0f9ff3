"""No kernel reads outside of its arrays; where there is no AVX-512 the results are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="guards memory with mprotect")


def _run(arguments, **settings):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"NUMBA_BOUNDSCHECK": "1"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"},
    ],
    ids=["bounds checked", "plain processor", "AVX2"],
)
def test_every_kernel_stays_inside_and_agrees(settings, tmp_path):
    if "NUMBA_BOUNDSCHECK" in settings:  # Numba keeps code of processors apart, but not this
        settings = {**settings, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = _run(["-m", "tests.kernels.guarded_cases"], **settings)
    assert found.returncode == 0 and found.stdout == "inside\n", found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("at_end", [True, False])
def test_the_guard_bites(at_end):
    read = "x.data_ptr() + x.nbytes" if at_end else "x.data_ptr() - 1"
    script = (
        "import ctypes, torch\n"
        "from tests.kernels.guarded_cases import guarded\n"
        f"x = guarded(torch.ones(5), {at_end})\n"
        "assert int(x.sum()) == 5\n"
        f"ctypes.string_at({read}, 1)\n"
    )
    assert _run(["-c", script]).returncode in (-signal.SIGSEGV, -signal.SIGBUS)
