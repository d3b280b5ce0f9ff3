"""x and y by address: results in the dtype wanted, bit for bit what torch rounds to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.float8_tensor import Float8Tensor
from labkit.kernels import (
    CodebookPanels,
    GgufPanels,
    Int4Panels,
    codebook_linear,
    fp8_linear,
    int4_linear,
    panel_linear,
)
from labkit.kernels.cpu.operands import float_operand, hand_over
from labkit.quantize import gguf, nf4
from tests.kernels.cases import int4_weight

_NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bits, or NaN on both sides."""
    assert found.dtype == expected.dtype
    kind = torch.int16 if found.dtype == torch.bfloat16 else torch.int32
    equal = found.view(kind) == expected.view(kind)
    return bool((equal | (found.isnan() & expected.isnan())).all())


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.booleans(), st.data())
def test_sums_are_handed_over_rounded_as_torch_rounds(rows, tokens, low, data):
    panels = -(-rows // 16)
    values = data.draw(st.lists(_NUMBERS, min_size=16, max_size=16))
    some = torch.tensor(values, dtype=torch.float32)
    out = torch.stack([some.roll(k) for k in range(tokens * panels)]).reshape(tokens, 16 * panels)
    dtype = torch.bfloat16 if low else torch.float32
    y = torch.full((tokens * rows + 32,), 7, dtype=dtype)  # what follows must stay
    cut = data.draw(st.integers(0, panels)) * 16
    for first, last in ((0, cut), (cut, 16 * panels)):
        hand_over(out.numpy(), first, last, y.data_ptr(), y.itemsize, tokens, rows)
    assert same(y[: tokens * rows].reshape(tokens, rows), out[:, :rows].to(dtype))
    assert (y[tokens * rows :] == 7).all()


def _weights():
    torch.manual_seed(0)
    dense = torch.randn(37, 256)
    rows, _ = int4_weight(37, 256, 64, False)
    blocks = torch.from_numpy(gguf.quantize(dense, "Q4_K"))
    four = nf4.quantize(dense)
    return {
        "int4": (lambda x, w, **o: int4_linear(x, w, **o), Int4Panels.from_rows(rows)),
        "nf4": (lambda x, w, **o: codebook_linear(x, w, **o), CodebookPanels.from_rows(four)),
        "Q4_K": (lambda x, w, **o: panel_linear(x, w, **o), GgufPanels.from_blocks(blocks, "Q4_K")),
    }


@pytest.mark.parametrize("name", ["int4", "nf4", "Q4_K"])
@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
def test_a_result_in_bfloat16_is_the_float32_one_rounded(name, tokens):
    multiply, weight = _weights()[name]
    x = torch.randn(tokens, 256).to(torch.bfloat16)
    bias = torch.zeros(37)  # with a bias the kernel returns float32, and torch rounds
    assert same(multiply(x, weight), multiply(x, weight, bias=bias))
    if name != "nf4":
        low = multiply(x, weight, activation_bits=8)
        assert same(low, multiply(x, weight, bias=bias, activation_bits=8))


@pytest.mark.parametrize("name", ["int4", "nf4", "Q4_K"])
def test_strides_gradients_and_float16_change_nothing(name):
    multiply, weight = _weights()[name]
    x = torch.randn(5, 512)[:, ::2]
    expected = multiply(x.contiguous(), weight)
    assert torch.equal(multiply(x, weight), expected)
    assert torch.equal(multiply(x.clone().requires_grad_(), weight), expected)
    half = x.to(torch.float16)
    assert torch.equal(multiply(half, weight), multiply(half.float(), weight).half())


def test_fp8_scales_by_row_or_for_all():
    torch.manual_seed(0)
    weight, x = Float8Tensor.quantize(torch.randn(9, 71)), torch.randn(2, 71)
    for scale in (weight.scale, weight.scale.reshape(-1)[:1].reshape(1, 1)):
        one = Float8Tensor(weight.codes, scale)
        exact = x.double() @ one.dequantize().double().T
        assert torch.allclose(fp8_linear(x, one).double(), exact, rtol=0, atol=1e-5)


def test_float32_is_taken_as_it_is():
    x = torch.randn(2, 8)
    assert float_operand(x) is x
    narrow = float_operand(x[:, ::2])
    assert narrow.is_contiguous() and np.array_equal(narrow.numpy(), x.numpy()[:, ::2])
