import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, NonFiniteError, SchemeError, ShapeError
from labkit.core.granularity import block_range, expand
from labkit.core.scheme import QuantScheme
from labkit.quantize import rtn

SCHEMES = st.builds(
    lambda bits, symmetric, granularity, narrow: QuantScheme(
        bits, symmetric, granularity, 4 if granularity == "group" else None, narrow
    ),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from(["tensor", "channel", "group", "token"]),
    st.booleans(),
)
SEEDS = st.integers(0, 2**32 - 1)


def weights(seed, out=6, columns=12):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(out, 1, generator=generator).exp()
    return torch.randn(out, columns, generator=generator) * rows


@given(SCHEMES, SEEDS)
def test_error_is_at_most_half_a_step(scheme, seed):
    weight = weights(seed)
    tensor = rtn.quantize(weight, scheme, scale_dtype=torch.float32)
    step = expand(tensor.scale, scheme, weight.shape)
    assert bool(((tensor.dequantize() - weight).abs() <= step * 0.5 + weight.abs() * 1e-6).all())


@given(SCHEMES, SEEDS)
def test_float16_scales_add_no_more_than_documented(scheme, seed):
    weight = weights(seed)
    tensor = rtn.quantize(weight, scheme)
    step = expand(tensor.scale, scheme, weight.shape).float()
    bound = step * (0.5 + (scheme.qmax - scheme.qmin) * 2.0**-11) + weight.abs() * 1e-6
    assert tensor.scale.dtype == torch.float16
    assert bool(((tensor.dequantize() - weight).abs() <= bound).all())


@given(SCHEMES, SEEDS)
def test_no_other_code_is_nearer(scheme, seed):
    weight = weights(seed)
    tensor = rtn.quantize(weight, scheme)
    step = expand(tensor.scale, scheme, weight.shape).double()
    zeros = 0 if tensor.zero_point is None else expand(tensor.zero_point, scheme, weight.shape)
    error = (tensor.dequantize() - weight).abs().double()
    for change in (-1, 1):
        other = tensor.codes.to(torch.int32) + change
        allowed = (other >= scheme.qmin) & (other <= scheme.qmax)
        distance = ((other - zeros) * step - weight).abs()
        assert bool((error <= distance + weight.abs() * 1e-6)[allowed].all())
    assert int(tensor.codes.min()) >= scheme.qmin and int(tensor.codes.max()) <= scheme.qmax


@given(st.integers(2, 8), st.booleans(), SEEDS)
def test_agrees_with_torch_per_channel(bits, symmetric, seed):
    weight = weights(seed)
    scheme = QuantScheme(bits, symmetric)
    tensor = rtn.quantize(weight, scheme, scale_dtype=torch.float32)
    zeros = tensor.zero_point
    if zeros is None:
        zeros = torch.zeros(len(weight), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, tensor.scale.reshape(-1), zeros.reshape(-1), 0, scheme.qmin, scheme.qmax
    )
    # Half-way cases alone may differ: torch multiplies by 1 / scale.
    same = (tensor.dequantize() - theirs).abs() <= 1e-6 * weight.abs()
    steps = (weight.double() / tensor.scale.double()).abs()
    assert bool((same | ((steps % 1 - 0.5).abs() < 1e-4)).all())


def test_finer_granularity_has_less_error():
    weight = weights(0, 64, 256)
    schemes = [
        QuantScheme(4, granularity="tensor"),
        QuantScheme(4, granularity="channel"),
        QuantScheme(4, granularity="group", group_size=32),
    ]
    errors = [float((rtn.quantize(weight, s).dequantize() - weight).norm()) for s in schemes]
    assert errors[0] > errors[1] > errors[2]


def test_full_range_helps_at_two_bits():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    narrow, full = (
        float((rtn.quantize(weight, QuantScheme(2, narrow_range=n)).dequantize() - weight).norm())
        for n in (True, False)
    )
    assert full < narrow


def test_a_zero_channel_stays_zero_beside_others():
    weight = weights(0)
    weight[2] = 0.0
    for symmetric in (True, False):
        tensor = rtn.quantize(weight, QuantScheme(4, symmetric))
        assert not bool(tensor.dequantize()[2].any())
        assert float(tensor.scale[2]) == 1.0


def test_half_precision_and_parameters():
    weight = torch.nn.Parameter(weights(1).to(torch.bfloat16))
    tensor = rtn.quantize(weight, QuantScheme(8))
    same = rtn.quantize(weight.detach().float(), QuantScheme(8))
    assert torch.equal(tensor.codes, same.codes) and torch.equal(tensor.scale, same.scale)
    assert not tensor.dequantize().requires_grad


def test_transposed_weight_is_quantized_by_its_rows():
    weight = weights(2).T
    for scheme in (QuantScheme(4), QuantScheme(4, granularity="group", group_size=3)):
        tensor = rtn.quantize(weight, scheme)
        assert torch.equal(tensor.codes, rtn.quantize(weight.contiguous(), scheme).codes)
        lo, hi = block_range(weight, scheme)
        assert tensor.scale.shape == lo.shape == hi.shape


def test_weight_is_not_changed():
    weight = weights(3)
    before = weight.clone()
    rtn.quantize(weight, QuantScheme(4, False))
    assert torch.equal(weight, before)


def test_refusals():
    weight = weights(4)
    with pytest.raises(GroupSizeError, match="does not divide the last axis, 12"):
        rtn.quantize(weight, QuantScheme(4, granularity="group", group_size=5))
    with pytest.raises(SchemeError, match="int8"):
        rtn.quantize(torch.zeros(2, 2, dtype=torch.int8), QuantScheme(4))
    with pytest.raises(ShapeError, match="no elements"):
        rtn.quantize(torch.empty(0, 4), QuantScheme(4))
    with pytest.raises(SchemeError, match="beyond the maximum"):
        rtn.quantize(torch.full((2, 2), 1e8), QuantScheme(4))
    weight[1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 of 72 .*\(1, 2\) = nan"):
        rtn.quantize(weight, QuantScheme(4))
