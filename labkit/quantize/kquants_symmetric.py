"""Q3_K and Q6_K: the types of GGUF whose sub-blocks have a scale and no min.

A super-block is 256 weights, 16 sub-blocks of 16. A weight is code * sub-scale * d, where codes run
from -4 to 3 (Q3_K) or from -32 to 31 (Q6_K), the 16 sub-scales are small integers themselves, and
one float16, d, is shared by all. So the scales cost 0.4 to 0.6 bits a weight instead of 1.

Byte for byte what quantize_row_q3_K_ref, quantize_row_q3_K_impl, quantize_row_q6_K_ref and
quantize_row_q6_K_impl of ggml write (llama.cpp of llama-cpp-python 0.3.36). Sums of float32 depend
on their order, and go from the first term to the last.
"""

from __future__ import annotations

import numpy as np

from labkit.quantize.kquants_search import SMALLEST_SCALE, nearest_int, ordered_sum

_SUB = 16
_PASSES = 5


def encode_q6_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 210].

    Bytes of a super-block: 0..127 low 4 bits, 128..191 high 2 bits, 192..207 sub-scales (int8),
    208..209 d.
    """
    blocks = x.reshape(-1, 16, _SUB)
    with np.errstate(all="ignore"):  # as in C, where infinity and NaN go through
        weight = blocks * blocks if importance is None else _spread(importance, x.shape)
        scale, codes = search_scale(blocks, weight, 32)
        largest, magnitude = largest_of(scale)
        inverse = np.float32(-128) / largest
        d = (np.float32(1) / inverse).astype(np.float16)
        sub_scale = np.minimum(nearest_int(inverse[:, None] * scale), 127).astype(np.int8)
        codes = _round_again(blocks, d, sub_scale, codes, 32)
    out = np.zeros((len(blocks), 210), np.uint8)
    # Two halves of 128; a byte of the low bits holds weights 64 apart, of the high bits 32 apart.
    quarters = codes.reshape(-1, 2, 4, 32)
    low = quarters & 15
    out[:, 0:128] = (low[:, :, :2] | (low[:, :, 2:] << 4)).reshape(-1, 128)
    out[:, 128:192] = _join(quarters >> 4, 2).reshape(-1, 64)
    out[:, 192:208] = sub_scale.view(np.uint8)
    out[:, 208:210] = d[:, None].view(np.uint8)
    out[magnitude < SMALLEST_SCALE] = 0
    return out.reshape(len(x), -1)


def encode_q3_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 110].

    Bytes of a super-block: 0..31 third bits, 32..95 low 2 bits, 96..107 sub-scales (6 bits),
    108..109 d.
    """
    blocks = x.reshape(-1, 16, _SUB)
    with np.errstate(all="ignore"):
        if importance is None:
            scale, codes = _descend(blocks, 4)
            d, stored = _sub_scales_q3(scale)
        else:
            weight = _weigh(blocks, _spread(importance, x.shape))
            scale, codes = search_scale(blocks, weight, 4)
            d, stored = search_scale(scale, ordered_sum(weight), 32)
        d = d.astype(np.float16)
        codes = _round_again(blocks, d, stored - 32, codes, 4)
    out = np.zeros((len(blocks), 110), np.uint8)
    out[:, 0:32] = _join((codes >> 2).reshape(-1, 8, 32), 1)
    out[:, 32:96] = _join((codes & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    # Low 4 bits of sub-scales j and j + 8 share byte j; high 2 bits of j, j + 4, … byte 8 + j % 4.
    stored = stored.astype(np.uint8)
    out[:, 96:104] = (stored[:, :8] & 15) | (stored[:, 8:] << 4)
    out[:, 104:108] = _join((stored >> 4).reshape(-1, 4, 4), 2)
    out[:, 108:110] = d[:, None].view(np.uint8)
    return out.reshape(len(x), -1)


def search_scale(x: np.ndarray, weight: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose a scale for each block; 19 candidates (ggml, make_qx_quants).

    Each candidate sends the largest number of the block to about -levels, rounds with that, and
    then takes the scale that fits those codes best: sum(w x q) / sum(w q²), least squares. The one
    with the smallest weighted error wins, that is, with the largest sum(w x q)² / sum(w q²).

    Args:
        x, weight: float32 [..., n].
        levels: codes run from -levels to levels - 1.

    Returns:
        scale, float32 [...]; codes + levels, int32 [..., n]. Both 0 where x is.
    """
    largest, magnitude = largest_of(x)
    scale = np.zeros_like(largest)
    best = np.zeros_like(largest)
    codes = np.zeros(x.shape, np.int32)
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(levels + np.float32(0.1) * np.float32(step)) / largest
        q = np.clip(nearest_int(inverse[..., None] * x), -levels, levels - 1)
        q_float = q.astype(np.float32)
        wxq = ordered_sum(weight * x * q_float)
        wqq = ordered_sum(weight * q_float * q_float)
        fitted = np.where(wqq != 0, wxq / wqq, np.float32(0))
        # The first is taken as it is.
        better = (wqq > 0) & (wxq * wxq > best * wqq) if step else np.ones_like(wqq, bool)
        scale = np.where(better, fitted, scale)
        best = np.where(better, fitted * wxq, best)
        codes = np.where(better[..., None], q + levels, codes)
    empty = magnitude < SMALLEST_SCALE
    return np.where(empty, np.float32(0), scale), np.where(empty[..., None], 0, codes)


def _descend(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose codes one after the other (ggml, make_q3_quants); returns as `search_scale`.

    Rounding with one scale comes first. Then each weight in turn looks where it would go if the
    scale were fitted to the others alone, and goes there if the error falls; up to 5 passes. The
    error of x counts x² times.
    """
    largest, magnitude = largest_of(x)
    weight = x * x
    inverse = np.float32(-levels) / largest
    q = np.clip(nearest_int(inverse[..., None] * x), -levels, levels - 1).astype(np.float32)
    wxq = ordered_sum(weight * x * q)
    wqq = ordered_sum(weight * q * q)
    for _ in range(_PASSES):
        before = q.copy()
        for i in range(x.shape[-1]):
            xi, wi, qi = x[..., i], weight[..., i], q[..., i]
            others_wxq = wxq - wi * xi * qi
            others_wqq = wqq - wi * qi * qi
            new = nearest_int(xi * others_wqq / others_wxq)
            new = np.clip(new, -levels, levels - 1).astype(np.float32)
            new_wxq = others_wxq + wi * xi * new
            new_wqq = others_wqq + wi * new * new
            better = (others_wxq > 0) & (new != qi) & (new_wqq > 0)
            better &= new_wxq * new_wxq * wqq > wxq * wxq * new_wqq
            q[..., i] = np.where(better, new, qi)
            wxq = np.where(better, new_wxq, wxq)
            wqq = np.where(better, new_wqq, wqq)
        if (q == before).all():
            break
    scale = np.where(wqq > 0, wxq / wqq, np.float32(0))
    empty = magnitude < SMALLEST_SCALE
    codes = np.where(empty[..., None], 0, q.astype(np.int32) + levels)
    return np.where(empty, np.float32(0), scale), codes


def _sub_scales_q3(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d, float32 [blocks], and sub-scales + 32, int32 [blocks, 16]: the largest becomes -32."""
    largest, _ = largest_of(scale)
    inverse = np.float32(-32) / largest
    # int8 as in ggml: where largest is so small that inverse is infinite, 2^22 falls off.
    stored = np.clip(nearest_int(inverse[:, None] * scale).astype(np.int8), -32, 31)
    used = largest != 0
    d = np.where(used, np.float32(1) / inverse, np.float32(0))
    return d, np.where(used[:, None], stored.astype(np.int32) + 32, 0)


def _round_again(x, d, sub_scale, codes, levels):
    """Codes + levels for the scales as they are stored; a sub-block of scale 0 keeps ``codes``."""
    step = d.astype(np.float32)[:, None, None] * sub_scale.astype(np.float32)[..., None]
    q = np.clip(nearest_int(x / step), -levels, levels - 1) + levels
    return np.where(step != 0, q, codes).astype(np.uint8)


def largest_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of largest magnitude along the last axis, the first of several, and its |x|."""
    magnitude = np.where(np.isnan(x), np.float32(0), np.abs(x))
    where = magnitude.argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(np.where(magnitude == 0, np.float32(0), x), where, -1)
    return largest[..., 0], np.take_along_axis(magnitude, where, -1)[..., 0]


def _weigh(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Importance, times the root of x² and of twice the super-block's mean square."""
    squares = ordered_sum((x * x).reshape(len(x), -1))
    sigma2 = np.float32(2) * squares / np.float32(x[0].size)
    return importance * np.sqrt(sigma2[:, None, None] + x * x)


def _spread(importance: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[columns] -> [super-blocks, 16, 16], the same for every row."""
    return np.broadcast_to(importance, shape).reshape(-1, 16, _SUB)


def _join(parts: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., k, n], k parts of ``bits`` bits -> uint8 [..., n], the first part lowest."""
    joined = np.zeros_like(parts[..., 0, :])
    for k in range(parts.shape[-2]):
        joined |= parts[..., k, :] << (bits * k)
    return joined


ENCODE = {"Q3_K": encode_q3_k, "Q6_K": encode_q6_k}
