"""Which implementation runs: by the device of the weight, or by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch

from labkit.core.errors import SchemeError

Implementation = Literal["reference", "cpu", "gpu"]
NAMES = ("reference", "cpu", "gpu")


@cache  # found at once, and without a name put together: small products are short
def _imported(implementation: str, operation: str) -> ModuleType:
    return import_module(f"labkit.kernels.{implementation}.{operation}")


def module(operation: str, device: torch.device, implementation: str | None) -> ModuleType:
    """`labkit.kernels.<implementation>.<operation>`.

    Args:
        implementation: None: "cpu" on a CPU, "gpu" on a CUDA device, "reference" elsewhere.

    Raises:
        SchemeError: an unknown name, one that does not run on ``device``, or Triton missing.
    """
    if implementation is None and device.type == "cpu":
        return _imported("cpu", operation)
    if implementation is None:
        implementation = "gpu" if device.type == "cuda" else "reference"
    where = f"{operation} on {device}"
    if implementation not in NAMES:
        raise SchemeError(
            f"implementation {implementation!r}", where, f"There are {', '.join(NAMES)}."
        )
    if implementation == "cpu" and device.type != "cpu":
        raise SchemeError("the compiled kernel runs on a CPU", where, 'Choose "gpu".')
    if implementation == "gpu" and find_spec("triton") is None:
        raise SchemeError(
            "Triton is not installed", where, '`pip install triton`, or choose "reference".'
        )
    if implementation == "gpu" and device.type == "cpu" and not interpreted():
        raise SchemeError(
            "Triton compiles for a GPU", where, "Set TRITON_INTERPRET=1 before Python starts."
        )
    return _imported(implementation, operation)


def interpreted() -> bool:
    """Whether Triton's kernels are run by its interpreter, on a CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)
