"""What llama-imatrix sums, by llama.cpp itself: the squares of the inputs of every matrix product.

The tool is not part of llama-cpp-python, but what it hangs on is: llama.cpp calls back before and
after each operation, and shows its tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labkit.peers.ggml import library_path
from labkit.peers.llama_cpp import LlamaCpp

_F32 = 0


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h."""


_Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)


def squared_inputs(
    path: Path | str, sequences: Sequence[Sequence[int]], threads: int = 1
) -> dict[str, np.ndarray]:
    """Sums of x² over all tokens for every weight of the blocks: float64 [columns] by its name.

    Args:
        path: a GGUF file of floats: inputs of quantized weights are no floats any more.
        sequences: token ids, each sequence by itself.

    Raises PeerError and PeerMissingError as `LlamaCpp`.
    """
    base = ctypes.CDLL(str(library_path()))
    base.ggml_op_desc.restype = ctypes.c_char_p
    base.ggml_op_desc.argtypes = [ctypes.c_void_p]
    sums: dict[str, np.ndarray] = {}

    def see(address: int, ask: bool, _: object) -> bool:
        tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if base.ggml_op_desc(address) != b"MUL_MAT":
            return not ask
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode()
        if not name.startswith("blk.") or inputs.type != _F32:
            return not ask
        if not ask:
            squares = np.square(_rows(inputs).astype(np.float64)).sum(axis=0)
            sums[name] = sums[name] + squares if name in sums else squares
        return True

    longest = max(map(len, sequences))
    with LlamaCpp(path, longest, threads, watch=see) as llama:
        for sequence in sequences:
            llama.logits(sequence)
    return sums


def _rows(tensor: _Tensor) -> np.ndarray:
    """A float32 tensor with two axes: [rows, columns], where it lies."""
    rows, columns = tensor.ne[1], tensor.ne[0]
    size = tensor.nb[1] * rows
    content = np.ctypeslib.as_array(
        ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_uint8)), shape=(size,)
    )
    return np.ndarray((rows, columns), np.float32, content, strides=(tensor.nb[1], tensor.nb[0]))
