"""NF4, FP4 and double quantization: the bytes and the values of bitsandbytes, whatever goes in."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.codebook import BOOKS, NestedAbsmax
from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.quantize import lookup16, nf4
from labkit.quantize.dynamic_map import dynamic_map, nearest_level, quantize_absmax

KINDS = ["gauss", "heavy", "zeros", "constant", "half zero", "huge", "tiny", "subnormal", "ties"]
SHAPES = [(1,), (2,), (63,), (64,), (65,), (3, 96), (5, 64), (2, 3, 50), (70, 256), (257, 65)]


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Some of bitsandbytes' loops are torch.compile'd: minutes for the same numbers."""
    with torch.compiler.set_stance("force_eager"):
        yield


def weights(kind, shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if kind == "heavy":
        x = x.sign() * x.abs().exp() ** 3 / 100
    elif kind == "zeros":
        x = torch.zeros(shape)
    elif kind == "constant":
        x = torch.full(shape, -0.37)
    elif kind == "half zero":
        x[..., : shape[-1] // 2] = 0
    elif kind == "huge":
        x = (x / 4).clamp(-1, 1) * (6e4 if dtype == torch.float16 else 3.3e38)
    elif kind == "tiny":
        x = x * 1e-6
    elif kind == "subnormal":
        x = x * 1e-40
    elif kind == "ties":
        boundaries, _ = nf4.decision_boundaries(BOOKS["nf4"])
        x = boundaries[torch.randint(15, shape, generator=generator)]
        x.view(-1)[0] = 1.0
    return x.to(dtype)


def theirs_dequantized(packed, state, shape):
    """By a flat shape: with a row that is no multiple of the block, 0.50 reads a wrong absmax."""
    flat = bnb.QuantState(
        state.absmax,
        torch.Size([torch.Size(shape).numel()]),
        state.code,
        state.blocksize,
        state.quant_type,
        state.dtype,
        state.offset,
        state.state2,
    )
    return bnb.dequantize_4bit(packed, flat).reshape(shape)


def comparable(values):
    """Some CPUs round to bfloat16 by an instruction that flushes subnormals to zero."""
    if values.dtype != torch.bfloat16:
        return values
    return torch.where(values.abs() >= torch.finfo(torch.bfloat16).tiny, values, 0)


def assert_equals_bitsandbytes(weight, quant_type, block, double):
    packed, state = bnb.quantize_4bit(
        weight, blocksize=block, compress_statistics=double, quant_type=quant_type
    )
    ours = [
        nf4.quantize(
            weight, quant_type=quant_type, block_size=block, double_quantization=double, loop=loop
        )
        for loop in ("plain", "numba")
    ]
    values = comparable(theirs_dequantized(packed, state, weight.shape))
    for tensor in ours:
        assert torch.equal(tensor.packed, packed.reshape(-1))
        if double:
            assert torch.equal(tensor.absmax.codes, state.absmax)
            assert torch.equal(tensor.absmax.absmax, state.state2.absmax)
            assert torch.equal(tensor.absmax.levels, state.state2.code)
            assert tensor.absmax.offset == state.offset.item()
        else:
            assert torch.equal(tensor.absmax, state.absmax)
        for dequantized in (tensor.dequantize(), nf4.dequantize(tensor)):
            assert torch.equal(comparable(dequantized.to(weight.dtype)), values)
        assert torch.equal(nf4.dequantize(tensor), nf4.dequantize(tensor, loop="plain"))


@settings(max_examples=100)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(SHAPES),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from(["nf4", "fp4"]),
    st.sampled_from([32, 64, 128, 256, 4096]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_bytes_and_values_equal_bitsandbytes(kind, shape, dtype, quant_type, block, double, seed):
    weight = weights(kind, shape, dtype, seed)
    if double and kind == "huge" and dtype != torch.float16:
        double = False  # the sum of magnitudes overflows; see the refusals
    assert_equals_bitsandbytes(weight, quant_type, block, double)


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=140))
def test_any_floats_equal_bitsandbytes(numbers):
    weight = torch.tensor(numbers)
    assert_equals_bitsandbytes(weight, "nf4", 64, double=False)
    assert_equals_bitsandbytes(weight, "fp4", 32, double=False)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_whole_layer_equals_bitsandbytes(quant_type):
    assert_equals_bitsandbytes(weights("gauss", (768, 1024)) * 0.02, quant_type, 64, double=True)


def test_the_dynamic_map_is_theirs_and_every_point_of_the_unit_range_too():
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map())
    # One run of 256 at a time, its first value 1 so that nothing is rescaled.
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2000, 256, generator=generator) * 2 - 1
    rows[:1000] *= 10.0 ** (-7 * torch.rand(1000, 1, generator=generator))
    rows[:, 0] = 1
    theirs, _ = bnb.quantize_blockwise(rows, blocksize=256)
    assert torch.equal(nearest_level(rows, dynamic_map()), theirs)


@given(st.integers(0, 2**32 - 1), st.integers(1, 700))
def test_double_quantization_is_within_half_a_gap(seed, blocks):
    absmax = torch.rand(blocks, generator=torch.Generator().manual_seed(seed)) + 0.5
    nested = quantize_absmax(absmax)
    error = (nested.dequantize() - absmax).abs()
    # The widest gap of the levels is 1/64 · 0.9; one of the 65536 points adds half of its own.
    widest = float((nested.levels[1:] - nested.levels[:-1]).max())
    peak = nested.absmax.repeat_interleave(256)[:blocks]
    assert bool((error <= peak * (widest / 2 + 2e-5) + 1e-6).all())


def test_equal_magnitudes_come_back_exactly():
    nested = quantize_absmax(torch.full((300,), 0.75))
    assert torch.equal(nested.dequantize(), torch.full((300,), 0.75))


@given(st.sampled_from(["nf4", "fp4"]), st.integers(0, 2**32 - 1))
def test_no_other_level_is_nearer(quant_type, seed):
    weight = weights("gauss", (4, 64), seed=seed)
    tensor = nf4.quantize(weight, quant_type=quant_type)
    levels = torch.tensor(BOOKS[quant_type].values)
    distances = (weight[..., None] - levels * tensor.absmax[:, None, None]).abs()
    mine = (weight - tensor.dequantize()).abs()
    assert bool((mine <= distances.amin(-1) + 1e-6 * weight.abs().max()).all())
    # The largest of a block comes back exactly.
    assert torch.equal(tensor.dequantize().abs().amax(1), weight.abs().amax(1))


def test_zeros_and_padding():
    tensor = nf4.quantize(torch.zeros(3, 50))
    assert not bool(tensor.dequantize().any())
    assert set(tensor.codes.reshape(-1).tolist()) == {BOOKS["nf4"].values.index(0.0)}
    odd = nf4.quantize(torch.ones(3))
    assert odd.packed.tolist() == [0xFF, 0xF7]


def test_double_quantization_saves_0_373_bits():
    weight = weights("gauss", (256, 256))
    single = nf4.quantize(weight)
    double = nf4.quantize(weight, double_quantization=True)
    assert isinstance(double.absmax, NestedAbsmax)
    assert single.bits_per_weight - double.bits_per_weight == pytest.approx(0.373, abs=1e-3)
    worse = (double.dequantize() - weight).norm() / (single.dequantize() - weight).norm()
    assert 1.0 <= float(worse) < 1.02


def test_weights_are_left_alone_and_views_are_read_right():
    base = weights("gauss", (64, 96))
    before = base.clone()
    turned = nf4.quantize(base.T)
    assert torch.equal(base, before)
    assert torch.equal(turned.packed, nf4.quantize(base.T.contiguous()).packed)
    parameter = torch.nn.Parameter(base)
    assert not nf4.dequantize(nf4.quantize(parameter)).requires_grad


def test_refusals():
    weight = weights("gauss", (4, 64))
    weight[2, 3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"\(2, 3\) = inf"):
        nf4.quantize(weight)
    weight[2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\(2, 3\) = nan"):
        nf4.quantize(weight)
    with pytest.raises(ShapeError, match="no elements"):
        nf4.quantize(torch.empty(0, 64))
    with pytest.raises(SchemeError, match="float64"):
        nf4.quantize(torch.ones(4, dtype=torch.float64))
    with pytest.raises(SchemeError, match="int4"):
        nf4.quantize(torch.ones(4), quant_type="int4")
    with pytest.raises(SchemeError, match="block size 100"):
        nf4.quantize(torch.ones(4), block_size=100)
    with pytest.raises(SchemeError, match="without double quantization"):
        nf4.quantize(torch.full((256, 64), 3e38), double_quantization=True)


@pytest.mark.skipif(not lookup16.AVAILABLE, reason="the processor has no AVX-512")
@pytest.mark.parametrize("shape", [(5, 64), (33, 50), (600, 513)])
def test_sixteen_look_ups_at_once_equal_one_by_one(shape, monkeypatch):
    tensor = nf4.quantize(weights("heavy", shape), quant_type="nf4")
    wide = nf4.dequantize(tensor)
    monkeypatch.setattr(lookup16, "AVAILABLE", False)
    assert torch.equal(wide, nf4.dequantize(tensor))
