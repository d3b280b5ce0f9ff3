"""GGUF blocks, NF4 and FP8: the product with what the format's own decoder gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.float8_tensor import Float8Tensor
from labkit.kernels import codebook_linear, fp8_linear, gguf_linear
from labkit.quantize import gguf, nf4
from labkit.quantize.gguf_types import BLOCK_TYPES
from tests.kernels.cases import product_bound

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
TOKENS = st.sampled_from([1, 2, 5, 16, 33])


def _close(y, x, weight, dtype):
    exact = x.double() @ weight.double().T
    assert y.dtype == dtype
    return ((y.double() - exact).abs() <= 2 * product_bound(x, weight, dtype)).all()


@settings(max_examples=40, deadline=None)
@given(
    type_name=st.sampled_from(["Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL"]),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 5),
    tokens=TOKENS,
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_gguf(type_name, rows, blocks, tokens, dtype, seed):
    torch.manual_seed(seed)
    columns = BLOCK_TYPES[type_name].weights * blocks
    packed = gguf.quantize(torch.randn(rows, columns), type_name)
    x = torch.randn(tokens, columns).to(dtype)
    y = gguf_linear(x, torch.from_numpy(packed), type_name)
    weight = torch.from_numpy(gguf.dequantize(packed, type_name))
    # A minimum is taken off in a sum of two roundings: code * scale counts, not what is left.
    largest = weight.abs().amax().expand_as(weight)
    exact = gguf_linear(x, torch.from_numpy(packed), type_name, implementation="reference")
    bound = 2 * product_bound(x, largest, dtype)
    assert ((y.double() - exact.double()).abs() <= bound).all()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q4_K"])
def test_any_bytes_are_read_as_the_decoder_reads_them(type_name):
    kind = BLOCK_TYPES[type_name]
    generator = np.random.default_rng(1)
    packed = generator.integers(0, 256, (64, 2 * kind.nbytes), np.uint8)
    for start in range(0, packed.shape[1], kind.nbytes):  # halves that are finite
        packed[:, start + 1] &= 0xBB
        packed[:, start + 3] &= 0xBB
    weight = torch.from_numpy(gguf.dequantize(packed, type_name))
    unit = torch.eye(weight.shape[1])
    found = torch.cat(
        [gguf_linear(part, torch.from_numpy(packed), type_name) for part in unit.split(8)]
    )
    torch.testing.assert_close(found.T, weight, rtol=1e-6, atol=1e-5 * float(weight.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["nf4", "fp4"]),
    block=st.sampled_from([32, 64, 128, 256]),
    nested=st.booleans(),
    rows=st.integers(1, 30),
    columns=st.sampled_from([1, 7, 32, 64, 96, 128, 256, 384, 512]),
    tokens=TOKENS,
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_codebook(kind, block, nested, rows, columns, tokens, dtype, seed):
    torch.manual_seed(seed)
    weight = nf4.quantize(
        torch.randn(rows, columns), quant_type=kind, block_size=block, double_quantization=nested
    )
    x = torch.randn(tokens, columns).to(dtype)
    wide = replace(weight, dtype=torch.float32).dequantize()
    exact = codebook_linear(x, weight, implementation="reference")
    assert _close(exact, x, wide, dtype)
    assert _close(codebook_linear(x, weight), x, wide, dtype)


@settings(max_examples=30, deadline=None)
@given(
    granularity=st.sampled_from(["tensor", "channel"]),
    rows=st.integers(1, 30),
    columns=st.integers(1, 130),
    tokens=TOKENS,
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_fp8(granularity, rows, columns, tokens, dtype, seed):
    torch.manual_seed(seed)
    weight = Float8Tensor.quantize(torch.randn(rows, columns), granularity)
    x = torch.randn(tokens, columns).to(dtype)
    assert _close(fp8_linear(x, weight), x, weight.dequantize(), dtype)
    exact = fp8_linear(x, weight, implementation="reference")
    assert _close(exact, x, weight.dequantize(), dtype)


def test_every_fp8_number_is_read():
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = numbers[~numbers.float().isnan()]
    codes = torch.cat([finite.view(torch.uint8), finite.view(torch.uint8).flip(0)])
    codes = codes.repeat(2, 1).view(torch.float8_e4m3fn)  # each in whole registers, and after them
    weight = Float8Tensor(codes, torch.ones(2, 1))
    unit = torch.eye(codes.shape[1])
    found = torch.cat([fp8_linear(part, weight) for part in unit.split(8)])
    assert torch.equal(found.T, codes.float())


@pytest.mark.parametrize("nan", [0x7F, 0xFF])
@pytest.mark.parametrize("column", [0, 1, 62, 63, 64, 127, 128, 130])
def test_a_row_with_an_fp8_nan_is_nan_and_no_other(column, nan):
    codes = torch.full((3, 131), 0x7E, dtype=torch.uint8)  # the largest number, 448
    codes[1, column] = nan
    weight = Float8Tensor(codes.view(torch.float8_e4m3fn), torch.ones(3, 1))
    found = fp8_linear(torch.ones(1, 131), weight)
    assert found.isnan().tolist() == [[False, True, False]]
    assert found[0, 0] == 131 * 448


def test_bias_strides_and_no_tokens():
    x, bias = torch.randn(256, 6)[:, ::2].T, torch.randn(5)
    values = torch.randn(5, 256)
    blocks = torch.from_numpy(gguf.quantize(values, "Q4_K"))
    for run, weight in (
        (lambda *a: gguf_linear(a[0], blocks, "Q4_K", *a[1:]), None),
        (lambda *a: codebook_linear(a[0], nf4.quantize(values), *a[1:]), None),
        (lambda *a: fp8_linear(a[0], Float8Tensor.quantize(values), *a[1:]), None),
    ):
        assert weight is None
        y = run(x, bias)
        assert y.shape == (3, 5) and torch.equal(y, run(x.contiguous()) + bias)
        assert run(x[:0]).shape == (0, 5)


def test_bad_input_is_named():
    x = torch.randn(2, 256)
    blocks = torch.zeros(3, 144, dtype=torch.uint8)
    for wrong, words in (
        ((x, blocks, "Q9"), "no block type"),
        ((x, blocks[:, :100], "Q4_K"), "blocks have shape"),
        ((x, blocks.to(torch.int8), "Q4_K"), r"blocks is torch\.int8"),
        ((x, torch.zeros(144, 3, dtype=torch.uint8).T, "Q4_K"), "blocks is not contiguous"),
        ((x[:, :255], blocks, "Q4_K"), "x has shape"),
    ):
        with pytest.raises((SchemeError, ShapeError), match=words):
            gguf_linear(*wrong)
    with pytest.raises(ShapeError, match="weight has shape"):
        codebook_linear(x, nf4.quantize(torch.randn(256)))
    with pytest.raises(ShapeError, match="x has shape"):
        codebook_linear(x[:, :100], nf4.quantize(torch.randn(3, 256)))
    with pytest.raises(SchemeError, match="x is torch"):
        fp8_linear(x.int(), Float8Tensor.quantize(torch.randn(3, 256)))
