"""The compiled encoders write the same bytes where there is no AVX, and no fused multiply-add."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CHECK = """
from labkit.peers import ggml
from labkit.quantize import iq4_numba, kquants_numba, kquants_symmetric_numba, lookup16
from tests.quantize.gguf_inputs import importances, weights

assert not lookup16.AVAILABLE
for module in (kquants_numba, kquants_symmetric_numba, iq4_numba):
    for type_name, encode in module.ENCODE.items():
        for importance in importances():
            for name, x in weights().items():
                expected = ggml.quantize(x, type_name, importance)
                assert (encode(x, importance, 1) == expected).all(), (type_name, name)
print("same")
"""


@pytest.mark.slow
def test_bytes_are_the_same_on_a_plain_processor(tmp_path):
    settings = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    found = subprocess.run(
        [sys.executable, "-c", _CHECK],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "same\n", found.stderr
