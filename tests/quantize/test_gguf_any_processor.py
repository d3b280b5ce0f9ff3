"""The compiled encoders write the same bytes where there is no AVX, and no fused multiply-add."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CHECK = """
import numpy as np
from labkit.peers import ggml
from labkit.quantize import gguf, lookup16
from labkit.quantize.gguf_types import BLOCK_TYPES
from tests.quantize.gguf_inputs import importances, weights
from tests.quantize.gguf_same import encoders

assert not lookup16.AVAILABLE
x = np.concatenate(list(weights().values()))
for type_name in gguf.ENCODERS:
    for importance in importances(BLOCK_TYPES[type_name].weights):
        expected = ggml.quantize(x, type_name, importance)
        assert (encoders(type_name)[1](x, importance, 1) == expected).all(), type_name
print("same")
"""


@pytest.mark.slow
def test_bytes_are_the_same_on_a_plain_processor():
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    found = subprocess.run(
        [sys.executable, "-c", _CHECK],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "same\n", found.stderr
