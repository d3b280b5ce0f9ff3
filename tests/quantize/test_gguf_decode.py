"""Decoding: bit for bit what ggml and the gguf package make of a block, of any bytes."""

from __future__ import annotations

import gguf as package
import numpy as np
import pytest

from labkit.peers import ggml
from labkit.quantize import block_decode_numba, gguf, gguf_floats_numba
from labkit.quantize.gguf_types import BLOCK_TYPES
from labkit.quantize.half_numba import from_half, to_half

FLOATS = ("F32", "F16", "BF16")
LOOPS = ("plain", "numba")


def _finite_scales(blocks: np.ndarray, type_name: str) -> np.ndarray:
    """The same blocks, but no float16 scale is NaN or infinite: their bits may differ."""
    kind = BLOCK_TYPES[type_name]
    table = blocks.reshape(-1, kind.nbytes)
    for field in kind.fields:
        if field.name in ("d", "dmin", "m"):
            half = table[:, field.offset : field.offset + 2].copy().view("<u2")
            half[(half & 0x7C00) == 0x7C00] &= 0x83FF
            table[:, field.offset : field.offset + 2] = half.view(np.uint8)
    return blocks


def _random_blocks(type_name: str, rows: int, columns: int) -> np.ndarray:
    kind = BLOCK_TYPES[type_name]
    rng = np.random.default_rng(kind.number)
    shape = (rows, columns // kind.weights * kind.nbytes)
    return _finite_scales(rng.integers(0, 256, shape, np.uint8), type_name)


@pytest.mark.filterwarnings("ignore:overflow")  # scales may be as large as they like
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("type_name", [name for name in BLOCK_TYPES if name not in FLOATS])
def test_any_bytes_decode_as_in_ggml_and_in_the_package(type_name, loop):
    blocks = _random_blocks(type_name, 7, 2048)
    bits = gguf.dequantize(blocks, type_name, loop=loop).view(np.uint32)
    np.testing.assert_array_equal(bits, ggml.dequantize(blocks, type_name).view(np.uint32))
    theirs = package.dequantize(blocks, package.GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(bits, theirs.view(np.uint32))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("type_name", [n for n in BLOCK_TYPES if n not in (*FLOATS, "MXFP4")])
def test_scales_of_infinity_and_nan_pass_through(type_name, loop):
    kind = BLOCK_TYPES[type_name]
    blocks = _random_blocks(type_name, 2, 256)
    where = kind.offset("d")
    table = blocks.reshape(-1, kind.nbytes)
    table[:, where : where + 2] = np.array([0, 0x7C], np.uint8)
    table[0, where : where + 2] = np.array([1, 0x7E], np.uint8)
    with np.errstate(invalid="ignore"):
        found = gguf.dequantize(blocks, type_name, loop=loop)
    np.testing.assert_array_equal(found, ggml.dequantize(blocks, type_name))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("type_name", FLOATS)
def test_every_pattern_of_a_float(type_name, loop):
    if type_name == "F32":
        blocks = np.random.default_rng(0).standard_normal((4, 64), np.float32).view(np.uint8)
    else:
        blocks = np.arange(2**16, dtype="<u2").reshape(64, 1024).view(np.uint8)
    found = gguf.dequantize(blocks, type_name, loop=loop)
    expected = ggml.dequantize(blocks, type_name)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~numbers)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_threads_and_read_only_blocks_change_nothing(type_name, monkeypatch):
    for module in (block_decode_numba, gguf_floats_numba):
        monkeypatch.setattr(module, "FAST", 1)  # so that threads do share the work
    x = np.random.default_rng(3).standard_normal((130, 1024), np.float32)
    blocks = ggml.quantize(x, type_name)
    expected = ggml.dequantize(blocks, type_name)
    blocks.flags.writeable = False
    for threads in (1, 2, None):
        found = gguf.dequantize(blocks, type_name, threads=threads)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_columns_of_a_wider_table_decode(type_name):
    x = np.random.default_rng(4).standard_normal((3, 512), np.float32)
    blocks = ggml.quantize(x, type_name)
    wide = np.concatenate([blocks, blocks], axis=1)[:, : blocks.shape[1]]
    for loop in LOOPS:
        np.testing.assert_array_equal(
            gguf.dequantize(wide, type_name, loop=loop), ggml.dequantize(blocks, type_name)
        )


def test_float16_bits_round_as_numpy_rounds():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = np.sort(every[np.isfinite(every)]).astype(np.float32)
    midway = (every[1:] + every[:-1]) / 2
    numbers = np.concatenate([every, midway, np.nextafter(midway, np.float32(0))])
    numbers = np.concatenate([numbers, np.float32([65519.99, 65520, 1e9, -1e9, np.inf, 1e-45])])
    numbers = numbers[:: max(1, numbers.size // 20000)]
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16).view(np.uint16)
    # As plain Python: the compiled loops are checked through the blocks.
    assert [int(to_half.py_func(number)) for number in numbers] == expected.tolist()
    low, high = expected.view(np.uint8)[0::2], expected.view(np.uint8)[1::2]
    with np.errstate(over="ignore"):
        found = [from_half(a, b) for a, b in zip(low, high, strict=True)]
    np.testing.assert_array_equal(np.float32(found), expected.view(np.float16).astype(np.float32))
