"""The decoders of `labkit.quantize.block_decode`, compiled: the same bits.

Sixteen bytes at a time become the codes of sixteen neighbouring weights, one value of
`labkit.quantize.lanes`, where no bits are missing; the other loops are left to the compiler.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.block_decode import FP4_LEVELS, IQ4_LEVELS, half_power
from labkit.quantize.gguf_threads import FAST, share
from labkit.quantize.gguf_types import BLOCK_TYPES
from labkit.quantize.half_numba import from_half
from labkit.quantize.lanes import load_bytes, splat, store, to_floats

_POWERS = half_power(np.arange(256, dtype=np.uint8))
_FOUR, _EIGHT, _FIFTEEN = np.int32(4), np.int32(8), np.int32(15)
_TOP, _BYTE = np.int32(128), np.int32(255)

_inlined = numba.njit(error_model="numpy", boundscheck=False)
_compiled = numba.njit(cache=True, error_model="numpy", boundscheck=False, nogil=True)


@_compiled
def _q4_0(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d, byte = splat(from_half(block[0], block[1])), load_bytes(block, 2)
        store(values, 0, to_floats((byte & splat(_FIFTEEN)) - splat(_EIGHT)) * d)
        store(values, 16, to_floats((byte >> splat(_FOUR)) - splat(_EIGHT)) * d)


@_compiled
def _q4_1(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d, m = splat(from_half(block[0], block[1])), splat(from_half(block[2], block[3]))
        byte = load_bytes(block, 4)
        store(values, 0, to_floats(byte & splat(_FIFTEEN)) * d + m)
        store(values, 16, to_floats(byte >> splat(_FOUR)) * d + m)


@_inlined
def _fifth_bits(block, first):
    """The 32 bits of bytes ``first`` to ``first + 3``, as an int32."""
    low = np.int32(block[first]) | (np.int32(block[first + 1]) << 8)
    high = np.int32(block[first + 2]) | (np.int32(block[first + 3]) << 8)
    return np.int32(low | (high << 16))


@_compiled
def _q5_0(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        fifth = _fifth_bits(block, 2)
        for j in range(16):
            byte = np.int32(block[6 + j])
            low = np.int32((byte & 15) | (((fifth >> np.int32(j)) & 1) << 4))
            high = np.int32((byte >> 4) | (((fifth >> np.int32(j + 16)) & 1) << 4))
            values[j] = np.float32(np.int32(low - 16)) * d
            values[j + 16] = np.float32(np.int32(high - 16)) * d


@_compiled
def _q5_1(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        m = from_half(block[2], block[3])
        fifth = _fifth_bits(block, 4)
        for j in range(16):
            byte = np.int32(block[8 + j])
            low = np.int32((byte & 15) | (((fifth >> np.int32(j)) & 1) << 4))
            high = np.int32((byte >> 4) | (((fifth >> np.int32(j + 16)) & 1) << 4))
            values[j] = np.float32(low) * d + m
            values[j + 16] = np.float32(high) * d + m


@_inlined
def _signed(byte):
    """Two's complement: bytes 128 to 255 mean -128 to -1."""
    return ((byte + splat(_TOP)) & splat(_BYTE)) - splat(_TOP)


@_compiled
def _q8_0(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = splat(from_half(block[0], block[1]))
        store(values, 0, to_floats(_signed(load_bytes(block, 2))) * d)
        store(values, 16, to_floats(_signed(load_bytes(block, 18))) * d)


@_compiled
def _iq4_nl(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        for j in range(16):
            byte = block[2 + j]
            values[j] = d * IQ4_LEVELS[byte & 15]
            values[j + 16] = d * IQ4_LEVELS[byte >> 4]


@_compiled
def _mxfp4(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = _POWERS[block[0]]
        for j in range(16):
            byte = block[1 + j]
            values[j] = FP4_LEVELS[byte & 15] * d
            values[j + 16] = FP4_LEVELS[byte >> 4] * d


def shared_decoders(loops):
    """By type: f(blocks uint8 [rows, row bytes], out float32 [rows, columns], threads).

    A loop takes blocks [n, bytes of a block] and writes their weights [n, weights of a block].
    """
    return {name: _shared(loop, BLOCK_TYPES[name]) for name, loop in loops.items()}


def _shared(loop, kind):
    def decode(blocks: np.ndarray, out: np.ndarray, threads: int) -> None:
        table, values = blocks.reshape(-1, kind.nbytes), out.reshape(-1, kind.weights)

        def part(first: int, last: int) -> None:
            loop(table[first:last], values[first:last])

        share(part, len(table), kind.weights, threads, least=FAST)

    return decode


DECODE = shared_decoders(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "IQ4_NL": _iq4_nl,
        "MXFP4": _mxfp4,
    }
)
