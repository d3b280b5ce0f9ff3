"""The Triton kernels, interpreted on a CPU in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from labkit.core.errors import SchemeError
from labkit.kernels import quantize_tokens

without_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed (optional: pip install triton)"
)


@without_triton
def test_every_kernel_by_interpretation():
    found = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton_cases"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 23 and lines[-1] == "attention torch.float8_e4m3fn", found.stdout


@without_triton
def test_a_cpu_tensor_needs_the_interpreter():
    with pytest.raises(SchemeError, match="TRITON_INTERPRET=1"):
        quantize_tokens(torch.ones(1, 4), implementation="gpu")


def test_without_triton_the_words_say_so(monkeypatch):
    monkeypatch.setattr("labkit.kernels.choose.find_spec", lambda name: None)
    with pytest.raises(SchemeError, match="Triton is not installed"):
        quantize_tokens(torch.ones(1, 4), implementation="gpu")
