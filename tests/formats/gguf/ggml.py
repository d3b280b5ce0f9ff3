"""ggml's own reader of GGUF files, from the library beside llama-cpp-python."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp


def ggml_reads(path: Path) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """How many metadata pairs, and the offset in the file and the bytes of each tensor; None where
    ggml refuses the file."""
    library = ggml()
    context = library.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    if not context:
        return None
    begin = library.gguf_get_data_offset(context)
    tensors = {}
    for i in range(library.gguf_get_n_tensors(context)):
        offset = begin + library.gguf_get_tensor_offset(context, i)
        name = library.gguf_get_tensor_name(context, i).decode()
        tensors[name] = (offset, library.gguf_get_tensor_size(context, i))
    pairs = library.gguf_get_n_kv(context)
    library.gguf_free(context)
    return pairs, tensors


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


@cache
def ggml() -> ctypes.CDLL:
    """ggml's own reader, from the library beside llama-cpp-python."""
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.rglob("libggml-base.so"))))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    library.ggml_type_name.restype = ctypes.c_char_p
    library.gguf_get_tensor_name.restype = ctypes.c_char_p
    for name in ("gguf_get_n_kv", "gguf_get_n_tensors", "gguf_get_data_offset", "gguf_free"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("gguf_get_tensor_name", "gguf_get_tensor_offset", "gguf_get_tensor_size"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int64]
    for name in (
        "gguf_get_n_kv",
        "gguf_get_n_tensors",
        "gguf_get_data_offset",
        "gguf_get_tensor_offset",
        "gguf_get_tensor_size",
        "ggml_blck_size",
        "ggml_type_size",
    ):
        getattr(library, name).restype = ctypes.c_int64
    return library
