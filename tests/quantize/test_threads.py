"""Compiled loops on several threads leave torch's own number of threads alone."""

from __future__ import annotations

import subprocess
import sys

LOOPS = {
    "nf4": "nf4.dequantize(nf4.quantize(w))",
    "gptq": "gptq.quantize(w, stats, QuantScheme(4))",
    "gguf": "gguf.quantize(w, 'Q4_K', threads=2)",
    "kernels": "int4_linear(w[:2], Int4Weight.from_quantized(rtn.quantize(w, QuantScheme(4))))",
}
CODE = """
import numba, torch
torch.set_num_threads(1)
from labkit.core.scheme import QuantScheme
from labkit.kernels import Int4Weight, int4_linear
from labkit.quantize import gguf, gptq, nf4, rtn
from labkit.quantize.hessian import InputStats
w = torch.randn(1024, 1024)
stats = InputStats(1024)
stats.add(torch.randn(64, 1024))
"""


def test_torch_keeps_its_number_of_threads():
    after = (f"{loop}\nprint({name!r}, torch.get_num_threads())" for name, loop in LOOPS.items())
    found = subprocess.run(
        [sys.executable, "-c", "\n".join([CODE, *after])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.splitlines() == [f"{name} 1" for name in LOOPS], found.stderr
