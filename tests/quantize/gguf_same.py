"""The comparison that every encoder of a GGUF type has to pass."""

from __future__ import annotations

from importlib import import_module

import numpy as np

from labkit.peers import ggml
from labkit.quantize import gguf


def encoders(type_name: str):
    """The plain encoder of a type and the compiled one."""
    module = f"labkit.quantize.{gguf.ENCODERS[type_name]}"
    plain, compiled = (import_module(f"{module}{kind}").ENCODE for kind in ("", "_numba"))
    return plain[type_name], compiled[type_name]


def assert_same(
    x: np.ndarray, importance: np.ndarray | None, type_name: str, names: np.ndarray | None = None
) -> None:
    """Both encoders give ggml's bytes for `x`, float32 [rows, columns]; `names` are of its rows."""
    expected = ggml.quantize(x, type_name, importance)
    plain, compiled = encoders(type_name)
    for found in (plain(x, importance), compiled(x, importance, 1)):
        other = (found != expected).any(axis=1)
        assert not other.any(), sorted(set(names[other])) if names is not None else x[other]
