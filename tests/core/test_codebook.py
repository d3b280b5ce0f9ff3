"""CodebookTensor and FloatZeroTensor: what they count, and what they refuse to be made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.codebook import BOOKS, CodebookTensor, NestedAbsmax, multiply_blocks
from labkit.core.errors import SchemeError, ShapeError
from labkit.core.float_zero import FloatZeroTensor
from labkit.core.quantized import Quantized


def codebook(shape=(4, 96), block=64, quant_type="nf4", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    packed = torch.randint(0, 256, ((count + 1) // 2,), dtype=torch.uint8, generator=generator)
    absmax = torch.rand(-(-count // block), generator=generator)
    return CodebookTensor(packed, absmax, torch.Size(shape), quant_type, block, dtype)


def nested(blocks=300):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator)
    runs = torch.rand(-(-blocks // 256), generator=generator)
    return NestedAbsmax(codes, runs, torch.linspace(-1, 1, 256), 0.25)


@given(st.sampled_from(["nf4", "fp4"]), st.sampled_from([(1,), (7,), (3, 33), (2, 3, 50)]))
def test_every_value_is_its_level_times_its_block(quant_type, shape):
    tensor = codebook(shape, 32, quant_type)
    values, codes = tensor.dequantize().reshape(-1), tensor.codes.reshape(-1).tolist()
    for i, code in enumerate(codes):
        byte = int(tensor.packed[i // 2])
        assert code == (byte >> 4 if i % 2 == 0 else byte & 15)
        level = torch.tensor(BOOKS[quant_type].values[code])
        assert torch.equal(values[i], level * tensor.absmax[i // 32])
    assert tensor.dequantize().shape == tensor.shape == tensor.codes.shape


def test_values_are_rounded_to_the_weights_dtype():
    exact, rounded = codebook(), codebook(dtype=torch.bfloat16)
    assert torch.equal(rounded.dequantize(), exact.dequantize().bfloat16().float())
    assert rounded.dequantize().dtype == torch.float32


def test_nested_magnitudes():
    absmax = nested()
    for block in (0, 255, 256, 299):
        unit = absmax.levels[int(absmax.codes[block])]
        assert absmax.dequantize()[block] == unit * absmax.absmax[block // 256] + 0.25


def test_bits_are_counted():
    single = codebook((256, 256))
    assert isinstance(single, Quantized)
    assert single.bits_per_weight == 4.5
    assert single.nbytes == 256 * 256 // 2 + 4 * 1024
    absmax = NestedAbsmax(
        torch.zeros(1024, dtype=torch.uint8), torch.ones(4), torch.zeros(256), 0.5
    )
    double = CodebookTensor(single.packed, absmax, single.shape)
    assert double.nbytes == 256 * 256 // 2 + 1024 + 4 * 4 + 4
    assert double.bits_per_weight == pytest.approx(4.127, abs=2e-3)
    assert repr(double) == (
        "CodebookTensor(256 x 256, nf4 block 64, double quantization, 4.127 bits/weight, "
        "33812 bytes)"
    )


def test_to_keeps_every_part():
    absmax = nested(6)
    tensor = CodebookTensor(codebook().packed, absmax, torch.Size((4, 96)))
    moved = tensor.to("cpu")
    assert torch.equal(moved.dequantize(), tensor.dequantize())
    assert moved.to("meta").packed.device.type == "meta"


@given(st.integers(1, 200), st.sampled_from([1, 32, 64]))
def test_blocks_are_multiplied_by_their_own_factor(count, block):
    values = torch.arange(1.0, count + 1)
    factors = torch.arange(1.0, -(-count // block) + 1)
    expected = values * factors.repeat_interleave(block)[:count]
    assert torch.equal(multiply_blocks(values, factors, block), expected)


def test_codebook_refusals():
    good = codebook()

    def refuse(kind, match, **changes):
        parts = {
            "packed": good.packed,
            "absmax": good.absmax,
            "shape": good.shape,
            "quant_type": "nf4",
            "block_size": 64,
            "dtype": torch.float32,
        }
        with pytest.raises(kind, match=match):
            CodebookTensor(**(parts | changes))

    refuse(SchemeError, "Choose from nf4, fp4; 32, 64", quant_type="int4")
    refuse(SchemeError, "block size 48", block_size=48)
    refuse(SchemeError, "float64", dtype=torch.float64)
    refuse(SchemeError, "absmax torch.float16", absmax=good.absmax.half())
    refuse(SchemeError, "packed is torch.int8", packed=good.packed.to(torch.int8))
    refuse(ShapeError, r"Expected \(192,\) and \(6,\)", absmax=good.absmax[:5])
    refuse(ShapeError, r"\(191,\)", packed=good.packed[:-1])
    refuse(ShapeError, "at least one", shape=torch.Size((0, 4)))
    codes, ones = torch.zeros(3, dtype=torch.uint8), torch.ones(256)
    with pytest.raises(SchemeError, match="offset nan"):
        NestedAbsmax(codes, ones[:1], ones, float("nan"))
    with pytest.raises(ShapeError, match="Expected"):
        NestedAbsmax(codes, ones[:2], ones, 0.0)
    with pytest.raises(SchemeError, match=r"uint8, float32 and float32"):
        NestedAbsmax(ones[:3], ones[:1], ones, 0.0)


def float_zero(bits=4, group=16):
    codes = torch.arange(64, dtype=torch.uint8).reshape(2, 32) % 2**bits
    scale = torch.tensor([[0.5, 0.25], [1.0, 2.0]])
    zero = torch.tensor([[1.5, -0.25], [7.0, 3.125]])
    return FloatZeroTensor(codes, scale, zero, bits, group)


def test_float_zero_counts_from_a_real_zero():
    tensor = float_zero()
    assert isinstance(tensor, Quantized)
    assert tensor.dequantize()[0, 3] == (3 - 1.5) * 0.5
    assert tensor.dequantize()[1, 31] == (15 - 3.125) * 2.0
    assert tensor.bits_per_weight == 4 + 64 / 16
    assert tensor.nbytes == 32 + 2 * 4 * 4
    assert sum(part.nbytes for part in tensor.packed().values()) == tensor.nbytes
    assert torch.equal(tensor.to("cpu").dequantize(), tensor.dequantize())
    assert "real zero, 8.000 bits/weight" in repr(tensor)


def test_float_zero_refusals():
    good = float_zero()
    with pytest.raises(SchemeError, match="16 bits"):
        FloatZeroTensor(good.codes, good.scale, good.zero, 16, 16)
    with pytest.raises(SchemeError, match=r"zero torch\.float16"):
        FloatZeroTensor(good.codes, good.scale, good.zero.half(), 4, 16)
    with pytest.raises(ShapeError, match="Expected"):
        FloatZeroTensor(good.codes, good.scale, good.zero, 4, 8)
    with pytest.raises(ShapeError, match="Expected"):
        FloatZeroTensor(good.codes[0], good.scale, good.zero, 4, 16)
