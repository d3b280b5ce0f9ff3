"""ggml's own quantizers, called in the library that llama-cpp-python brings.

libggml-base holds the reference quantizers and no kernels: plain C, compiled for any x86-64, so its
float32 arithmetic rounds after every step.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from labkit.core.errors import PeerMissingError
from labkit.quantize.gguf_types import block_type, row_bytes

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    )


def library_path() -> Path:
    """Where libggml-base is.

    Raises:
        PeerMissingError: llama-cpp-python is not installed, or brings no such file.
    """
    spec = find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        for folder in (package / "lib", package, package.parent / "lib"):
            for name in _NAMES:
                if (folder / name).exists():
                    return folder / name
    raise PeerMissingError(
        "no libggml-base", "llama_cpp", "Install llama-cpp-python: `make setup` does."
    )


def available() -> bool:
    """Whether the library is there."""
    try:
        library_path()
    except PeerMissingError:
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = (
        [ctypes.c_int, pointer, pointer] + [number] * 3 + [pointer]
    )
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    return library


def quantize(
    weight: np.ndarray,
    type_name: str,
    importance: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Blocks, uint8 [rows, row bytes], of float32 ``weight`` [rows, columns].

    The lock of the interpreter is let go meanwhile, so threads may share the rows out. Nothing is
    checked: NaN goes in, and what comes out is ggml's.

    Args:
        importance: float32 [columns].
        out: uint8, contiguous, of the shape returned; made if None.

    Raises:
        PeerMissingError: the library is not there.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    rows, columns = weight.shape
    if out is None:
        out = np.empty((rows, row_bytes(type_name, columns)), np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    number = block_type(type_name).number
    _library().ggml_quantize_init(number)
    _library().ggml_quantize_chunk(
        number,
        weight.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    return out


def dequantize(blocks: np.ndarray, type_name: str, out: np.ndarray | None = None) -> np.ndarray:
    """Weights, float32 [rows, columns], of ``blocks``, uint8 [rows, row bytes].

    Raises:
        PeerMissingError: the library is not there.
    """
    kind = block_type(type_name)
    blocks = np.ascontiguousarray(blocks)
    rows, nbytes = blocks.shape
    if out is None:
        out = np.empty((rows, nbytes // kind.nbytes * kind.weights), np.float32)
    if type_name == "F32":  # which has no such function
        out[:] = blocks.view(np.float32)
        return out
    to_float = _library().ggml_get_type_traits(kind.number).contents.to_float
    to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out
