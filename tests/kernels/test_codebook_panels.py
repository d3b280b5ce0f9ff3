"""NF4 and FP4 rows side by side: nothing is rounded by moving, and products keep to the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.codebook import NestedAbsmax
from labkit.core.errors import GroupSizeError, SchemeError, ShapeError
from labkit.kernels import CodebookPanels, codebook_linear
from labkit.kernels.cpu import int4_panels
from labkit.quantize import nf4
from tests.kernels.cases import product_bound

KINDS = {
    "kind": st.sampled_from(["nf4", "fp4"]),
    "block": st.sampled_from([32, 64, 128, 256]),
    "nested": st.booleans(),
    "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    "rows": st.integers(1, 40),
    "blocks": st.integers(1, 6),
    "seed": st.integers(0, 99),
}


def _weight(kind, block, nested, dtype, rows, blocks, seed):
    torch.manual_seed(seed)
    values = torch.randn(rows, blocks * block).to(dtype)
    return nf4.quantize(values, quant_type=kind, block_size=block, double_quantization=nested)


@settings(max_examples=40, deadline=None)
@given(**KINDS)
def test_every_weight_stays_what_it_is(**kinds):
    weight = _weight(**kinds)
    panels = CodebookPanels.from_rows(weight)
    back = panels.rows()
    assert torch.equal(back.packed, weight.packed)
    assert isinstance(back.absmax, NestedAbsmax) == kinds["nested"]
    assert torch.equal(back.block_absmax(), weight.block_absmax())
    wanted, some = weight.dequantize(), torch.randint(0, len(weight.codes), (5,))
    assert torch.equal(panels.dequantize(), wanted)
    assert torch.equal(panels.rows(some).dequantize(), wanted[some])
    assert torch.equal(panels.rows(slice(0, 1)).dequantize(), wanted[:1])


@settings(max_examples=60, deadline=None)
@given(
    **KINDS,
    tokens=st.integers(1, 40),
    of_x=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_products_are_those_of_the_formula(tokens, of_x, **kinds):
    weight = _weight(**kinds)
    panels, x = CodebookPanels.from_rows(weight), torch.randn(tokens, weight.shape[1]).to(of_x)
    wide = replace(weight, dtype=torch.float32).dequantize()
    y, exact = codebook_linear(x, panels), x.double() @ wide.double().T
    bound = 2 * product_bound(x, wide, of_x)
    if of_x == torch.bfloat16 and int4_panels.HAS_PAIRS:
        # The levels are bfloat16 too: half a unit of eight bits.
        bound = bound + 2.0**-9 * (x.double().abs() @ wide.double().abs().T)
    assert y.dtype == of_x and y.shape == exact.shape
    assert ((y.double() - exact).abs() <= bound).all()
    reference = codebook_linear(x, panels, implementation="reference")
    assert torch.equal(reference, codebook_linear(x, weight, implementation="reference"))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16])
def test_one_thread_gives_the_same_bits(nested, of_x):
    panels = CodebookPanels.from_rows(_weight("nf4", 64, nested, torch.float32, 600, 16, 0))
    x, threads = torch.randn(5, 1024).to(of_x), torch.get_num_threads()
    shared = codebook_linear(x, panels)
    try:
        torch.set_num_threads(1)
        assert torch.equal(codebook_linear(x, panels), shared)
    finally:
        torch.set_num_threads(threads)


def test_a_block_of_zeros_and_activations_that_are_not_finite():
    values = torch.randn(8, 128)
    values[:, :64] = 0
    panels = CodebookPanels.from_rows(nf4.quantize(values))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, 128, dtype=dtype)
        x[0, :64], x[1, 70] = 1, float("nan")
        y = codebook_linear(x, panels)
        assert (y[0] == 0).all() and y[1].isnan().all()


def test_strides_leading_axes_and_bias():
    panels = CodebookPanels.from_rows(nf4.quantize(torch.randn(24, 256)))
    bias, x = torch.randn(24), torch.randn(256, 2, 6)[:, :, ::2].permute(1, 2, 0)
    for given_x in (x, x.to(torch.bfloat16)):
        y = codebook_linear(given_x, panels, bias)
        flat = given_x.contiguous().reshape(-1, 256)
        assert torch.equal(y.reshape(-1, 24), codebook_linear(flat, panels, bias))
        assert codebook_linear(given_x[:0], panels).shape == (0, 3, 24)


def test_bad_input_is_named():
    plain = CodebookPanels.from_rows(nf4.quantize(torch.randn(20, 128)))
    nested = CodebookPanels.from_rows(nf4.quantize(torch.randn(20, 128), double_quantization=True))
    short = nf4.quantize(torch.randn(10, 128), double_quantization=True).absmax
    for panels, changes, error, words in (
        (plain, {"codes": plain.codes.to(torch.int8)}, SchemeError, "codes is torch.int8"),
        (plain, {"codes": plain.codes[:1]}, ShapeError, "codes has shape"),
        (plain, {"codes": plain.codes.to("meta")}, SchemeError, "codes is on meta"),
        (plain, {"absmax": plain.absmax.double()}, SchemeError, "absmax is torch.float64"),
        (plain, {"absmax": plain.absmax[0]}, ShapeError, "absmax has shape"),
        (plain, {"absmax": plain.absmax.mT.contiguous().mT}, SchemeError, "absmax is not contig"),
        (plain, {"shape": (40, 128)}, ShapeError, "codes has shape"),
        (plain, {"block_size": 256}, GroupSizeError, "in blocks of 256"),
        (plain, {"quant_type": "nf3"}, SchemeError, "nf3"),
        (nested, {"absmax": short}, ShapeError, "absmax.codes has shape"),
    ):
        with pytest.raises(error, match=words):
            replace(panels, **changes)
    with pytest.raises(SchemeError, match="laid out for a CPU"):
        codebook_linear(torch.randn(1, 128), plain, implementation="gpu")
    with pytest.raises(ShapeError, match="x has shape"):
        codebook_linear(torch.randn(1, 127), plain)
    with pytest.raises(GroupSizeError, match="96 columns in blocks of 64"):
        CodebookPanels.from_rows(nf4.quantize(torch.randn(4, 96)))
    with pytest.raises(ShapeError, match=r"weight has shape \(256,\)"):
        CodebookPanels.from_rows(nf4.quantize(torch.randn(256)))
