"""The block types of GGUF: what a block holds, byte by byte.

A row of a tensor is cut into blocks of 32 or 256 weights ("super-blocks"), and each block is stored
on its own: its scales, then its codes, or the other way round. All numbers are little-endian; a
float16 is IEEE binary16. Source: ggml-common.h, the block_* structures, of llama.cpp in
llama-cpp-python 0.3.36; the numbers are those of ggml.h, enum ggml_type.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.errors import GroupSizeError, SchemeError


@dataclass(frozen=True)
class Field:
    """A run of bytes within a block.

    Attributes:
        name: as in ggml's structure.
        offset: of its first byte within the block.
        nbytes: its length.
        meaning: what it holds.
    """

    name: str
    offset: int
    nbytes: int
    meaning: str


@dataclass(frozen=True)
class BlockType:
    """How a run of neighbouring weights of a row is stored.

    Attributes:
        name: "Q4_K"; as in file names and in `gguf.GGMLQuantizationType`.
        number: what a GGUF file says for it.
        weights: how many a block holds; it divides the row.
        nbytes: of a block.
        fields: all its bytes, in order.
    """

    name: str
    number: int
    weights: int
    nbytes: int
    fields: tuple[Field, ...]

    @property
    def bits_per_weight(self) -> float:
        """All bytes counted, scales included."""
        return self.nbytes * 8 / self.weights

    def offset(self, field: str) -> int:
        """The first byte of ``field`` within a block."""
        return next(known.offset for known in self.fields if known.name == field)


def _block_type(name: str, number: int, weights: int, *fields: tuple[str, int, str]) -> BlockType:
    """Lay ``fields`` (name, bytes, meaning) one behind the other."""
    placed, offset = [], 0
    for field, nbytes, meaning in fields:
        placed.append(Field(field, offset, nbytes, meaning))
        offset += nbytes
    return BlockType(name, number, weights, offset, tuple(placed))


_D = ("d", 2, "scale, float16")
_M = ("m", 2, "what is added to every weight, float16: the smallest of the block")
_HALVES = "4-bit codes: byte j holds weight j in its low bits, weight j + 16 in its high bits"
_QS32 = ("qs", 16, _HALVES)
_QH32 = ("qh", 4, "a fifth bit for each code: bit j of these 32 belongs to weight j")
_D_OF_SCALES = ("d", 2, "scale of the sub-blocks' scales, float16")
_D_OF_MINS = ("dmin", 2, "scale of the sub-blocks' mins, float16")
_PAIRS12 = ("scales", 12, "8 scales and 8 mins of 6 bits: bytes 0..7 low bits, 8..11 the rest")
_LOW_32 = "low 4 bits of the codes: 32 bytes hold 64 weights, the first 32 in the low bits"

BLOCK_TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        _block_type("F32", 0, 1, ("x", 4, "the weight, float32")),
        _block_type("F16", 1, 1, ("x", 2, "the weight, float16")),
        _block_type("BF16", 30, 1, ("x", 2, "the weight, bfloat16")),
        _block_type("Q4_0", 2, 32, _D, _QS32),
        _block_type("Q4_1", 3, 32, _D, _M, _QS32),
        _block_type("Q5_0", 6, 32, _D, _QH32, _QS32),
        _block_type("Q5_1", 7, 32, _D, _M, _QH32, _QS32),
        _block_type("Q8_0", 8, 32, _D, ("qs", 32, "codes, int8")),
        _block_type(
            "Q2_K",
            10,
            256,
            ("scales", 16, "a sub-block of 16 each: scale in the low 4 bits, min in the high 4"),
            ("qs", 64, "2-bit codes: 32 bytes hold 128 weights, 32 at each of 4 bit positions"),
            _D_OF_SCALES,
            _D_OF_MINS,
        ),
        _block_type(
            "Q3_K",
            11,
            256,
            ("hmask", 32, "the third bit of the codes: bit b of byte j belongs to weight 32 b + j"),
            ("qs", 64, "low 2 bits of the codes: 32 bytes hold 128 weights"),
            (
                "scales",
                12,
                "16 scales of 6 bits, 32 more than they mean: 8 bytes low, 4 bytes high",
            ),
            _D_OF_SCALES,
        ),
        _block_type(
            "Q4_K",
            12,
            256,
            _D_OF_SCALES,
            _D_OF_MINS,
            _PAIRS12,
            ("qs", 128, "4-bit codes: 32 bytes hold 64 weights, the first 32 in the low bits"),
        ),
        _block_type(
            "Q5_K",
            13,
            256,
            _D_OF_SCALES,
            _D_OF_MINS,
            _PAIRS12,
            ("qh", 32, "the fifth bit of the codes: bit b of byte j belongs to weight 32 b + j"),
            ("qs", 128, _LOW_32),
        ),
        _block_type(
            "Q6_K",
            14,
            256,
            ("ql", 128, "low 4 bits of the codes: 64 bytes hold 128 weights, 64 in the low bits"),
            ("qh", 64, "high 2 bits of the codes: 32 bytes hold 128 weights"),
            ("scales", 16, "of the 16 sub-blocks, int8"),
            _D_OF_SCALES,
        ),
        _block_type("IQ4_NL", 20, 32, _D, _QS32),
        _block_type(
            "IQ4_XS",
            23,
            256,
            _D_OF_SCALES,
            ("scales_h", 2, "high 2 bits of the 8 scales, 32 more than they mean"),
            ("scales_l", 4, "low 4 bits of the 8 scales"),
            ("qs", 128, "indices into the codebook: 16 bytes hold 32 weights, as in IQ4_NL"),
        ),
        _block_type("MXFP4", 39, 32, ("e", 1, "scale, a power of two: E8M0"), _QS32),
    )
}


def block_type(name: str) -> BlockType:
    """Look a type up by its name.

    Raises:
        SchemeError: there is none of that name here.
    """
    if name not in BLOCK_TYPES:
        raise SchemeError(f"no block type {name!r}", "GGUF", f"There are {', '.join(BLOCK_TYPES)}.")
    return BLOCK_TYPES[name]


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of a row of ``columns`` weights.

    Raises:
        SchemeError: an unknown type.
        GroupSizeError: the blocks do not fill the row.
    """
    kind = block_type(type_name)
    if columns <= 0 or columns % kind.weights:
        raise GroupSizeError(
            f"a row of {columns} weights is no whole number of blocks of {kind.weights}",
            type_name,
            "Take a type of smaller blocks: Q4_0, Q5_0, Q8_0 and IQ4_NL have 32, F16 has 1.",
        )
    return columns // kind.weights * kind.nbytes
