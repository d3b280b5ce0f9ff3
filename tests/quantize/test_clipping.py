import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, NonFiniteError, SchemeError, ShapeError
from labkit.core.granularity import from_blocks, scale_shape, to_blocks
from labkit.core.scheme import QuantScheme
from labkit.quantize import rtn
from labkit.quantize.clipping import clip, rounded, search_clip

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
GROUPS = QuantScheme(3, False, "group", 8)


def heavy_tailed(seed, out=6, columns=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, columns, generator=generator).pow(3)


def gram_of(x):
    return x.T @ x / len(x)


@given(SCHEMES, SEEDS)
def test_rounded_is_rtn_bit_for_bit(scheme, seed):
    weight = heavy_tailed(seed)
    assert torch.equal(rounded(weight, scheme), rtn.quantize(weight, scheme).dequantize())


@given(SCHEMES, SEEDS)
def test_clipping_never_adds_error(scheme, seed):
    weight = heavy_tailed(seed)
    plain = (rtn.quantize(weight, scheme).dequantize() - weight).square()
    cut = (rtn.quantize(weight, scheme, clip="mse").dequantize() - weight).square()
    by_block = [to_blocks(error, scheme).sum(dim=1) for error in (plain, cut)]
    assert bool((by_block[1] <= by_block[0] * (1 + 1e-6)).all())


@given(SEEDS)
def test_the_bound_is_the_best_of_the_ten(seed):
    weight = heavy_tailed(seed)
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed + 1))
    bound = search_clip(weight, GROUPS, gram_of(x))
    largest = to_blocks(weight, GROUPS).abs().amax(dim=1).reshape(bound.shape)

    def output_error(bounds):
        """Mean squared output of each group's error, by running the inputs through it."""
        error = rounded(clip(weight, bounds, GROUPS), GROUPS) - weight
        outputs = torch.einsum("ogk,tgk->ogt", error.reshape(6, 2, 8), x.reshape(-1, 2, 8))
        return outputs.square().mean(dim=2)

    tried = torch.stack([output_error(largest * (1 - 0.05 * step)) for step in range(10)])
    found = output_error(bound)
    assert bool((found <= tried.amin(dim=0) * (1 + 1e-4) + 1e-9).all())
    ratio = bound / largest
    assert bool((ratio >= 0.55 - 1e-6).all() and (ratio <= 1).all())


def test_inputs_decide_what_may_be_clipped():
    weight = torch.tensor([[1.0, 0.3, 0.2, 0.1]])
    scheme = QuantScheme(2, False, "group", 4)
    loud, quiet = torch.eye(4), torch.eye(4)
    loud[0, 0], quiet[0, 0] = 1e4, 1e-6
    assert float(search_clip(weight, scheme, loud)) == 1.0
    assert float(search_clip(weight, scheme, quiet)) < 1.0


def test_zero_blocks_and_silent_inputs_are_left_alone():
    weight = torch.randn(4, 16)
    weight[1] = 0.0
    bound = search_clip(weight, GROUPS, torch.zeros(16, 16))
    assert torch.equal(bound, weight.reshape(4, 2, 8).abs().amax(dim=2))
    assert not bool(rtn.quantize(weight, GROUPS, clip="mse").dequantize()[1].any())


def test_the_weight_is_not_changed():
    weight = heavy_tailed(1)
    before = weight.clone()
    rtn.quantize(weight, GROUPS, clip="mse")
    search_clip(weight, GROUPS, torch.eye(16))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group", "token"])
def test_bounds_have_the_shape_of_scales(granularity):
    scheme = QuantScheme(4, True, granularity, 4 if granularity == "group" else None)
    weight = heavy_tailed(2)
    bound = search_clip(weight, scheme)
    assert tuple(bound.shape) == scale_shape(weight.shape, scheme)
    cut = clip(weight, bound, scheme)
    expected = to_blocks(weight, scheme).clamp(-bound.reshape(-1, 1), bound.reshape(-1, 1))
    assert torch.equal(cut, from_blocks(expected, scheme, weight.shape))


def test_refusals():
    weight = heavy_tailed(3)
    with pytest.raises(SchemeError, match='"none" or "mse"'):
        rtn.quantize(weight, GROUPS, clip="best")
    with pytest.raises(GroupSizeError):
        search_clip(weight, QuantScheme(4, False, "group", 5))
    with pytest.raises(ShapeError, match=r"Expected \[16, 16\]"):
        search_clip(weight, GROUPS, torch.eye(8))
    with pytest.raises(SchemeError, match="one clip bound for all rows"):
        search_clip(weight, QuantScheme(4, granularity="tensor"), torch.eye(16))
    with pytest.raises(ShapeError, match=r"has the shape \(6, 2\)"):
        clip(weight, torch.ones(6, 1), GROUPS)
    broken = torch.eye(16)
    broken[2, 3] = float("inf")
    with pytest.raises(NonFiniteError, match="Gram"):
        search_clip(weight, GROUPS, broken)
    weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weight"):
        search_clip(weight, GROUPS)
