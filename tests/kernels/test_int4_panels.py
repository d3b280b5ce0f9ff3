"""int4 rows side by side: nothing is rounded by moving, and products keep to the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, NonFiniteError, SchemeError, ShapeError
from labkit.kernels import Int4Panels, int4_linear, quantize_tokens
from labkit.kernels.cpu import int4_panels
from tests.kernels.cases import EPS32, int4_weight

SHAPES = {
    "rows": st.integers(1, 40),
    "groups": st.integers(1, 6),
    "group": st.sampled_from([1, 8, 31, 32, 64, 100, 128, 256]),
    "symmetric": st.booleans(),
    "act_order": st.booleans(),
    "seed": st.integers(0, 99),
}


def _weight(rows, groups, group, symmetric, act_order, seed=0):
    return int4_weight(rows, groups * group, group, symmetric, act_order=act_order, seed=seed)


def _magnitudes(weight):
    """|scale| * (|code - 8| + |zero - 8|), float64 [out, in]: what a sum is made of."""
    rows = weight.rows()
    middle = replace(rows, zero_point=None)
    size = middle.dequantize().double().abs()
    if rows.zero_point is None:
        return size
    less = replace(rows, zero_point=16 - rows.zero_point, codes=torch.full_like(rows.codes, 0x88))
    return size + less.dequantize().double().abs()


def _bound(x, weight, dtype):
    exact = x.double() @ weight.dequantize().double().T
    terms = x.double().abs() @ _magnitudes(weight).T
    return 64 * EPS32 * terms + torch.finfo(dtype).eps * exact.abs() + 1e-30


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_every_weight_stays_what_it_is(rows, groups, group, symmetric, act_order, seed):
    packed, quantized = _weight(rows, groups, group, symmetric, act_order, seed)
    panels = Int4Panels.from_rows(packed)
    assert panels.shape == packed.shape
    assert torch.equal(panels.dequantize(), quantized.dequantize())
    some = torch.randint(0, rows, (5,))
    assert torch.equal(panels.rows(some).dequantize(), quantized.dequantize()[some])
    assert torch.equal(panels.rows(slice(0, 1)).dequantize(), quantized.dequantize()[:1])


@settings(max_examples=60, deadline=None)
@given(
    **SHAPES,
    tokens=st.integers(1, 40),
    bits=st.sampled_from([8, 16]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_products_are_those_of_the_formula(
    rows, groups, group, symmetric, act_order, seed, tokens, bits, dtype
):
    panels = Int4Panels.from_rows(_weight(rows, groups, group, symmetric, act_order, seed)[0])
    x = torch.randn(tokens, groups * group).to(dtype)
    y = int4_linear(x, panels, activation_bits=bits)
    exact = int4_linear(x, panels, activation_bits=bits, implementation="reference")
    if bits == 8:
        codes, scale = quantize_tokens(x)
        x = codes * scale
    assert y.dtype == dtype and y.shape == (tokens, rows)
    assert ((y.double() - exact.double()).abs() <= _bound(x, panels, dtype)).all()


@pytest.mark.skipif(not int4_panels.HAS_PAIRS, reason="the processor multiplies no pairs")
@pytest.mark.parametrize("tokens", [1, 6])
def test_pairs_and_floats_agree(tokens, monkeypatch):
    """bfloat16 x by pairs is not rounded further than bfloat16 x that is widened."""
    panels = Int4Panels.from_rows(_weight(35, 3, 128, False, True)[0])
    x = torch.randn(tokens, 384).to(torch.bfloat16)
    exact = x.double() @ panels.dequantize().double().T
    bound = _bound(x, panels, torch.float32)
    for wanted in (True, False):
        monkeypatch.setattr(int4_panels, "HAS_PAIRS", wanted)
        y = int4_panels.linear(x, panels)
        assert ((y.double() - exact).abs() <= bound).all(), wanted


def test_a_group_of_zeros_stays_zero():
    """Codes that all are the zero-point: what is left of x cancels, but for float32 roundings."""
    packed, _ = _weight(16, 2, 32, False, False)
    zeros = replace(packed, codes=torch.full_like(packed.codes, 0x33))
    zeros = replace(zeros, zero_point=torch.full_like(packed.zero_point, 3))
    panels = Int4Panels.from_rows(zeros)
    x = torch.randn(3, 64)
    assert (int4_linear(x, panels).abs() <= _bound(x, panels, torch.float32)).all()
    assert (int4_linear(x, panels, activation_bits=8) == 0).all()


def test_strides_leading_axes_bias_and_no_token():
    panels = Int4Panels.from_rows(_weight(24, 2, 128, False, False)[0])
    bias, x = torch.randn(24), torch.randn(256, 2, 6)[:, :, ::2].permute(1, 2, 0)
    for given_x in (x, x.to(torch.bfloat16)):
        assert not given_x.is_contiguous()
        y = int4_linear(given_x, panels, bias)
        flat = given_x.contiguous().reshape(-1, 256)
        assert torch.equal(y.reshape(-1, 24), int4_linear(flat, panels, bias))
        assert int4_linear(given_x[:0], panels).shape == (0, 3, 24)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_thread_gives_the_same_bits(bits):
    panels = Int4Panels.from_rows(_weight(600, 8, 128, False, False)[0])
    x, threads = torch.randn(5, 1024), torch.get_num_threads()
    shared = int4_linear(x, panels, activation_bits=bits)
    try:
        torch.set_num_threads(1)
        assert torch.equal(int4_linear(x, panels, activation_bits=bits), shared)
    finally:
        torch.set_num_threads(threads)


def test_not_finite_activations():
    panels = Int4Panels.from_rows(_weight(8, 1, 128, True, False)[0])
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, 128, dtype=dtype)
        x[1, 5] = float("nan")
        y = int4_linear(x, panels)
        assert (y[0] == 0).all() and y[1].isnan().all()
        with pytest.raises(NonFiniteError, match="token 1"):
            int4_linear(x, panels, activation_bits=8)


def test_bad_input_is_named():
    panels = Int4Panels.from_rows(_weight(20, 2, 64, False, False)[0])
    for changes, error, words in (
        ({"codes": panels.codes.to(torch.int8)}, SchemeError, "codes is torch.int8"),
        ({"codes": panels.codes.mT.contiguous().mT}, SchemeError, "codes is not contiguous"),
        ({"codes": panels.codes[:, ::2]}, ShapeError, "codes has shape"),
        ({"codes": panels.codes[:1]}, ShapeError, "codes has shape"),
        ({"scale": panels.scale.double()}, SchemeError, "scale is torch.float64"),
        ({"scale": panels.scale[0]}, ShapeError, "scale has shape"),
        ({"zero_point": panels.zero_point[:1]}, ShapeError, "zero_point has shape"),
        ({"columns": panels.columns + 1}, ShapeError, "columns outside"),
        ({"columns": panels.columns[:96]}, GroupSizeError, "96 slots for 2 groups"),
        ({"shape": (40, 128)}, ShapeError, "codes has shape"),
        ({"scale": panels.scale.to("meta")}, SchemeError, "scale is on meta"),
    ):
        with pytest.raises(error, match=words):
            replace(panels, **changes)
    with pytest.raises(SchemeError, match="laid out for a CPU"):
        int4_linear(torch.randn(1, 128), panels, implementation="gpu")
    with pytest.raises(ShapeError, match="x has shape"):
        int4_linear(torch.randn(1, 127), panels)
