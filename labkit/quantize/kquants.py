"""Q2_K, Q4_K and Q5_K: weights as scale * code - minimum, scales and minima in few bits themselves.

A super-block holds 256 weights in sub-blocks of 16 (Q2_K) or 32. Each sub-block has a scale and a
minimum; those are codes of 4 or 6 bits on two grids of the super-block, whose steps are float16:

    weight = (d * scale code) * code - (dmin * minimum code)

Encoding takes three steps: a search finds the scale and minimum of every sub-block; they are
rounded to their grids; the codes of the weights are taken anew for what was really stored.

This is the version to read, and what `kquants_numba` has to equal to the bit; both give the bytes
of ggml-quants.c, quantize_row_q{2,4,5}_K_ref and _impl, of llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labkit.quantize.kquants_search import (
    Search,
    affine_search,
    nearest_int,
    ordered_sum,
    scale_search,
)

SUPER_BLOCK = 256


@dataclass(frozen=True)
class KQuant:
    """One type's numbers.

    Attributes:
        size: weights of a sub-block.
        levels: the largest code of a weight.
        scale_levels: the largest code of a scale or a minimum.
        search: the candidates without an importance; with one, all types try `FINE`.
    """

    size: int
    levels: int
    scale_levels: int
    search: Search


KQUANTS = {
    "Q2_K": KQuant(16, 3, 15, Search(-0.5, 0.1, 15, absolute=True)),
    "Q4_K": KQuant(32, 15, 63, Search(-1.0, 0.1, 20)),
    "Q5_K": KQuant(32, 31, 63, Search(-0.5, 0.1, 15)),
}
FINE = Search(-0.9, 0.05, 36)


def encode_q2_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 ``x`` [rows, columns]: 84 bytes for 256 weights, 2.625 bits each.

    Byte  0  scales  16 bytes: the scale code in the low 4 bits, the minimum's in the high 4
         16  qs      64 bytes: byte 32 h + j holds weight 128 h + j at bits 0 and 1,
                     and weights 32, 64 and 96 further on above it
         80  d       float16
         82  dmin    float16
    """
    blocks = _quantize(x, importance, "Q2_K")
    quarters = blocks.codes.reshape(-1, 2, 4, 32)
    qs = np.zeros((len(quarters), 2, 32), np.uint8)
    for place in range(4):
        qs |= quarters[:, :, place] << (2 * place)
    parts = (blocks.packed_scales, qs.reshape(-1, 64), blocks.d, blocks.dmin)
    return np.concatenate(parts, axis=1).reshape(len(x), -1)


def encode_q4_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 ``x`` [rows, columns]: 144 bytes for 256 weights, 4.5 bits each.

    Byte  0  d       float16
          2  dmin    float16
          4  scales  12 bytes: eight scale codes and eight minimum codes of 6 bits (`pack_pairs`)
         16  qs      128 bytes: byte 32 h + j holds weight 64 h + j in its low 4 bits,
                     weight 64 h + j + 32 in its high 4
    """
    blocks = _quantize(x, importance, "Q4_K")
    parts = (blocks.d, blocks.dmin, blocks.packed_scales, _nibbles(blocks.codes))
    return np.concatenate(parts, axis=1).reshape(len(x), -1)


def encode_q5_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 ``x`` [rows, columns]: 176 bytes for 256 weights, 5.5 bits each.

    Byte  0  d       float16
          2  dmin    float16
          4  scales  12 bytes, as in Q4_K
         16  qh      32 bytes: bit b of byte j is the fifth bit of weight 32 b + j
         48  qs      128 bytes: the low 4 bits, as in Q4_K
    """
    blocks = _quantize(x, importance, "Q5_K")
    fifth = blocks.codes.reshape(-1, 8, 32) >> 4
    qh = np.zeros((len(fifth), 32), np.uint8)
    for bit in range(8):
        qh |= fifth[:, bit] << bit
    parts = (blocks.d, blocks.dmin, blocks.packed_scales, qh, _nibbles(blocks.codes & 15))
    return np.concatenate(parts, axis=1).reshape(len(x), -1)


ENCODE: dict[str, Callable[..., np.ndarray]] = {
    "Q2_K": encode_q2_k,
    "Q4_K": encode_q4_k,
    "Q5_K": encode_q5_k,
}


@dataclass(frozen=True)
class _Blocks:
    """What the three layouts are made of, all uint8 [super-blocks, bytes]."""

    d: np.ndarray
    dmin: np.ndarray
    packed_scales: np.ndarray
    codes: np.ndarray


@np.errstate(all="ignore")  # 0 / 0 and infinities are what the candidates that lose are made of
def _quantize(x: np.ndarray, importance: np.ndarray | None, name: str) -> _Blocks:
    kind = KQUANTS[name]
    subs = SUPER_BLOCK // kind.size
    x = x.reshape(-1, subs, kind.size)  # [super-blocks, sub-blocks, weights]
    if importance is None:
        weight, search = _weight(x, name), kind.search
    else:
        weight, search = _important_weight(x, importance, name), FINE
    flat = (-1, kind.size)
    scale, minimum, codes = affine_search(
        x.reshape(flat), weight.reshape(flat), kind.levels, search
    )
    scale, minimum = scale.reshape(-1, subs), minimum.reshape(-1, subs)
    if importance is None:
        d, scale_code = _round_scales(scale, name)
        dmin, minimum_code = _round_scales(minimum, name)
    else:
        per_sub_block = ordered_sum(weight)
        d, scale_code = scale_search(scale, per_sub_block, kind.scale_levels)
        dmin, minimum_code = scale_search(minimum, per_sub_block, kind.scale_levels)
        if name == "Q5_K":
            scale_code, minimum_code = (np.minimum(c, 63) for c in (scale_code, minimum_code))
    d, dmin = d.astype(np.float16), dmin.astype(np.float16)
    if name == "Q2_K":
        packed = scale_code | (minimum_code << 4)
        scale_code, minimum_code = packed & 15, packed >> 4
    else:
        packed = pack_pairs(scale_code, minimum_code)
        scale_code, minimum_code = unpack_pairs(packed)
    codes = _codes_again(
        x,
        d.astype(np.float32)[:, None] * scale_code.astype(np.float32),
        dmin.astype(np.float32)[:, None] * minimum_code.astype(np.float32),
        codes.reshape(x.shape),
        kind.levels,
    )
    return _Blocks(_bytes(d), _bytes(dmin), packed, codes.reshape(-1, SUPER_BLOCK))


def _weight(x: np.ndarray, name: str) -> np.ndarray:
    """What an error counts without an importance: |x|, and for Q4_K and Q5_K rms + |x|."""
    if name == "Q2_K":
        return np.abs(x)
    rms = np.sqrt(ordered_sum(x * x) / np.float32(32))
    return rms[..., None] + np.abs(x)


def _important_weight(x: np.ndarray, importance: np.ndarray, name: str) -> np.ndarray:
    """importance * sqrt(σ² + x²); σ² is the super-block's mean square (Q4_K, Q5_K: twice it)."""
    blocks_per_row = len(importance) // SUPER_BLOCK
    importance = importance.reshape(1, blocks_per_row, *x.shape[1:])
    square_sum = ordered_sum((x * x).reshape(-1, SUPER_BLOCK))
    times = np.float32(1 if name == "Q2_K" else 2)
    variance = times * square_sum / np.float32(SUPER_BLOCK)
    root = np.sqrt(variance[:, None, None] + x * x)
    return (importance * root.reshape(-1, *importance.shape[1:])).reshape(x.shape)


def _round_scales(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A grid whose last step is the largest of ``values`` [super-blocks, sub-blocks]."""
    levels = np.float32(KQUANTS[name].scale_levels)
    high = values.max(axis=1)
    high = np.where(high > 0, high, np.float32(0))  # the minima of positive weights are -0
    per_step = np.where(high > 0, levels / high, np.float32(0))
    codes = (nearest_int(per_step[:, None] * values) & 0xFF).astype(np.uint8)
    if name != "Q2_K":
        codes = np.minimum(codes, 63)
    return high / levels, codes


def _codes_again(x, scale, minimum, searched, levels: int) -> np.ndarray:
    """Codes for the stored scale and minimum [super-blocks, sub-blocks].

    Where the stored scale is 0 every code means the same: those of the search stay.
    """
    codes = np.clip(nearest_int((x + minimum[..., None]) / scale[..., None]), 0, levels)
    return np.where((scale == 0)[..., None], searched, codes.astype(np.uint8))


def pack_pairs(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Eight scale and eight minimum codes of 6 bits in 12 bytes: uint8 [..., 8] twice → [..., 12].

    Byte 0 … 3   scale 0 … 3 in the low 6 bits, the high 2 bits of scale 4 … 7 above them
         4 … 7   minimum 0 … 3 and the high 2 bits of minimum 4 … 7, likewise
         8 … 11  the low 4 bits of scale 4 … 7, those of minimum 4 … 7 above them
    """
    packed = [codes[..., :4] | (codes[..., 4:] >> 4) << 6 for codes in (scale, minimum)]
    packed.append((scale[..., 4:] & 15) | (minimum[..., 4:] & 15) << 4)
    return np.concatenate(packed, axis=-1)


def unpack_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack_pairs`."""
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], axis=-1)
    minimum = np.concatenate([second & 63, (rest >> 4) | (second >> 6) << 4], axis=-1)
    return scale, minimum


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """4-bit codes, uint8 [super-blocks, 256] → [super-blocks, 128]: 32 low, the next 32 high."""
    pairs = codes.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _bytes(halves: np.ndarray) -> np.ndarray:
    """float16 [super-blocks] as bytes [super-blocks, 2], little-endian."""
    return halves.astype("<f2").view(np.uint8).reshape(-1, 2)
