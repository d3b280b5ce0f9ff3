"""The two loops of NF4 and FP4, compiled: the same bytes as the plain ones, many times faster.

One pass over the weight. A block stays in the first-level cache while its largest magnitude is
found, its codes are counted out and packed. Each step is a loop without branches over a block, so
the compiler turns it into vector instructions; blocks are shared out over the cores.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from labkit.quantize import lookup16
from labkit.quantize.gguf_threads import at_most

# Blocks of 64 that one core takes at a time.
_RUN = 1024
# Waking a second thread costs more than this many floats.
_SMALL = 2**18
_MANTISSA_AND_EXPONENT = np.int32(0x7FFFFFFF)
_SMALLEST_DIVISOR = np.float32(1e-38)


def encode(
    values: torch.Tensor, boundaries: torch.Tensor, code_of: torch.Tensor, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole blocks only: float32 [n] -> packed uint8 [n / 2], absmax float32 [n / block_size].

    boundaries: the 15 midpoints, float32, rising; code_of: uint8 [16], place -> code.
    """
    numbers = values.contiguous().numpy()
    packed = np.empty(values.numel() // 2, np.uint8)
    absmax = np.empty(values.numel() // block_size, np.float32)
    with at_most(torch.get_num_threads()):
        _encode(
            numbers,
            numbers.view(np.int32),
            boundaries.numpy(),
            code_of.numpy(),
            packed,
            absmax,
            absmax.view(np.int32),
            block_size,
        )
    return torch.from_numpy(packed), torch.from_numpy(absmax)


def decode(
    packed: torch.Tensor, absmax: torch.Tensor, levels: torch.Tensor, block_size: int, count: int
) -> torch.Tensor:
    """Packed uint8 [ceil(count / 2)], absmax float32 [blocks] -> float32 [count].

    levels: float32 [16], code -> number.
    """
    # numpy asks the system for large pages, torch does not: a first write costs a fault a page.
    out = np.empty(packed.numel() * 2, np.float32)
    codes, scales, table = (t.contiguous().numpy() for t in (packed, absmax, levels))
    run = max(1, _RUN * 64 // block_size)
    if lookup16.AVAILABLE and block_size % (2 * lookup16.LANES) == 0:
        whole = codes.size // (block_size // 2)
        decode_blocks = _decode_wide if out.size >= _SMALL else _decode_wide_serial
        with at_most(torch.get_num_threads()):
            decode_blocks(codes, scales, table, out, block_size, run, whole)
        # A last block that is not whole, and nothing else, is left to the scalar loop.
        codes, scales = codes[whole * block_size // 2 :], scales[whole:]
        rest = out[whole * block_size :]
    else:
        rest = out
    if rest.size:
        pairs = torch.cartesian_prod(levels, levels).numpy().view(np.uint64).reshape(-1)
        with at_most(torch.get_num_threads()):
            _decode(codes, scales, pairs, rest, rest.view(np.uint64), block_size, run)
    return torch.from_numpy(out)[:count]


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _encode(values, bits, boundaries, code_of, packed, absmax, absmax_bits, block_size):
    half = block_size // 2
    blocks = absmax.size
    run = max(1, _RUN * 64 // block_size)
    for part in numba.prange((blocks + run - 1) // run):
        unit = np.empty(block_size, np.float32)
        places = np.empty(block_size, np.int32)
        for block in range(part * run, min((part + 1) * run, blocks)):
            # Slices, whose indices count from 0, spare a test for negative ones at each access.
            numbers = values[block * block_size : (block + 1) * block_size]
            patterns = bits[block * block_size : (block + 1) * block_size]
            out = packed[block * half : (block + 1) * half]
            # Without their sign bit floats are in the order of their bits, and a maximum of
            # integers vectorises where one of floats, which must mind NaN, does not.
            peak = np.int32(0)
            for i in range(patterns.size):
                peak = max(peak, np.int32(patterns[i] & _MANTISSA_AND_EXPONENT))
            absmax_bits[block] = peak
            inverse = np.float32(1) / max(absmax[block], _SMALLEST_DIVISOR)
            for i in range(numbers.size):
                unit[i] = numbers[i] * inverse
                places[i] = 0
            for k in range(boundaries.size):
                boundary = boundaries[k]
                for i in range(unit.size):
                    places[i] += np.int32(unit[i] > boundary)
            for i in range(out.size):
                out[i] = (code_of[places[2 * i]] << 4) | code_of[places[2 * i + 1]]


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _decode(packed, absmax, pairs, out, out_pairs, block_size, run):
    half = block_size // 2
    blocks = absmax.size
    for part in numba.prange((blocks + run - 1) // run):
        for block in range(part * run, min((part + 1) * run, blocks)):
            codes = packed[block * half : (block + 1) * half]
            numbers = out[block * block_size : (block + 1) * block_size]
            both = out_pairs[block * half : (block + 1) * half]
            # A byte stands for two floats: one look-up, one store of 8 bytes.
            for i in range(codes.size):
                both[i] = pairs[codes[i]]
            scale = absmax[block]
            for i in range(numbers.size):
                numbers[i] *= scale


@numba.njit(cache=True, error_model="numpy")
def _decode_wide_serial(packed, absmax, levels, out, block_size, run, blocks):
    _decode_run(packed, absmax, levels, out, block_size, 0, blocks)


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _decode_wide(packed, absmax, levels, out, block_size, run, blocks):
    for part in numba.prange((blocks + run - 1) // run):
        first = part * run
        _decode_run(packed, absmax, levels, out, block_size, first, min(first + run, blocks))


@numba.njit(cache=True, error_model="numpy")
def _decode_run(packed, absmax, levels, out, block_size, first, last):
    for block in range(first, last):
        start = block * block_size
        for place in range(start, start + block_size, 2 * lookup16.LANES):
            lookup16.decode_sixteen_bytes(packed, place // 2, levels, absmax[block], out, place)
