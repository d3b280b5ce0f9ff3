"""The layout of a GGUF file, and the limits within which labkit reads and writes one.

    4 bytes     "GGUF"
    uint32      version: 3 (2 has the same layout)
    uint64      count of tensors
    uint64      count of metadata pairs
    …           the metadata: key, kind, value (values.py)
    …           for each tensor: name, uint32 count of dimensions, uint64 each dimension (the
                innermost first), uint32 type, uint64 offset within the data
    padding     to a multiple of the alignment
    the data    the tensors in the order of their names above, each padded to the alignment

Numbers are little-endian. Source: GGUF's specification (ggml, docs/gguf.md) and what llama.cpp
accepts of it (ggml/src/gguf.cpp, llama.cpp of llama-cpp-python 0.3.36): at most four dimensions,
names shorter than 64 bytes, tensors without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.errors import FormatError
from labkit.quantize.gguf_types import BLOCK_TYPES

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment says nothing else
ALIGNMENT_KEY = "general.alignment"
MAX_DIMENSIONS = 4
MAX_NAME = 63  # bytes of a tensor's name
MAX_KEY = 65_535  # bytes of a metadata key

# ggml's other types: number -> (name, weights, bytes) of a block. labkit shows tensors of them but
# neither quantizes nor decodes them.
OTHER_TYPES = {
    9: ("Q8_1", 32, 36),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# number -> (name, weights, bytes) of every type that a file may name.
TYPES = OTHER_TYPES | {
    known.number: (known.name, known.weights, known.nbytes) for known in BLOCK_TYPES.values()
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Args:
        name: as llama.cpp names it: blk.0.attn_q.weight.
        shape: the outermost dimension first, as torch and numpy have it.
        type_name: "Q4_K"; a key of `BLOCK_TYPES`, or one of `OTHER_TYPES`' names.
        offset: its first byte, counted from the file's beginning.
        nbytes: its bytes, without padding.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int

    @property
    def columns(self) -> int:
        """Weights in a row: the innermost dimension."""
        return self.shape[-1] if self.shape else 1


def padded(count: int, alignment: int) -> int:
    """The next multiple of ``alignment``, a power of two."""
    return -(-count // alignment) * alignment


def checked_alignment(value: object, where: str) -> int:
    """``value`` if it is a power of two that fits 32 bits.

    Raises:
        FormatError: it is anything else.
    """
    if type(value) is not int or not 0 < value < 2**32 or value & (value - 1):
        raise FormatError(
            f"{ALIGNMENT_KEY} {str(value)[:50]}", where=where, remedy="It must be a power of two."
        )
    return value
