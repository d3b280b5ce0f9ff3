import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, NonFiniteError, ShapeError
from labkit.core.granularity import block_range, expand, from_blocks, scale_shape, to_blocks
from labkit.core.scheme import QuantScheme

TENSOR = QuantScheme(8, granularity="tensor")
CHANNEL = QuantScheme(8, granularity="channel")
TOKEN = QuantScheme(8, granularity="token")


def group(size):
    return QuantScheme(8, granularity="group", group_size=size)


@pytest.mark.parametrize(
    ("scheme", "shape", "scales", "blocks"),
    [
        (TENSOR, (4, 6), (1, 1), (1, 24)),
        (TENSOR, (), (), (1, 1)),
        (CHANNEL, (4, 6), (4, 1), (4, 6)),
        (CHANNEL, (4, 3, 2, 2), (4, 1, 1, 1), (4, 12)),
        (CHANNEL, (4,), (4,), (4, 1)),
        (group(3), (4, 6), (4, 2), (8, 3)),
        (group(6), (4, 6), (4, 1), (4, 6)),
        (TOKEN, (2, 5, 6), (2, 5, 1), (10, 6)),
    ],
)
def test_shapes(scheme, shape, scales, blocks):
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    assert scale_shape(shape, scheme) == scales
    assert to_blocks(x, scheme).shape == blocks
    assert torch.equal(from_blocks(to_blocks(x, scheme), scheme, shape), x)
    lo, hi = block_range(x, scheme)
    assert lo.shape == hi.shape == scales


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_expanded_range_bounds_each_element_tightly(out, groups, size, seed):
    x = torch.randn(out, groups * size, generator=torch.Generator().manual_seed(seed))
    for scheme in (TENSOR, CHANNEL, TOKEN, group(size)):
        lo, hi = (expand(bound, scheme, x.shape) for bound in block_range(x, scheme))
        assert bool(((lo <= x) & (x <= hi)).all())
        reached = to_blocks((x == hi) | (x == lo), scheme)
        assert bool((reached.sum(dim=1) >= min(2, reached.shape[1])).all())


def test_channel_is_axis_0_even_on_a_square_matrix():
    x = torch.tensor([[1.0, 2.0], [30.0, 40.0]])
    lo, hi = block_range(x, CHANNEL)
    assert lo.tolist() == [[1.0], [30.0]] and hi.tolist() == [[2.0], [40.0]]


def test_groups_run_along_in():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    lo, hi = block_range(x, group(2))
    assert lo.tolist() == [[1, 3], [5, 7]] and hi.tolist() == [[2, 4], [6, 8]]
    assert expand(lo, group(2), x.shape).tolist() == [[1, 1, 3, 3], [5, 5, 7, 7]]


def test_transposed_input_is_cut_by_its_axes_not_by_its_memory():
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(to_blocks(x.T, CHANNEL), x.T.contiguous())


def test_blocks_are_a_view():
    x = torch.zeros(4, 6)
    assert to_blocks(x, group(3)).data_ptr() == x.data_ptr()


def test_group_size_that_does_not_divide_names_divisors_near_it():
    with pytest.raises(GroupSizeError, match=r"100 .*256: 56 .*left over.*32, 64, 128, 256"):
        to_blocks(torch.zeros(2, 256), group(100))
    with pytest.raises(GroupSizeError, match="near it: 96, 192"):
        scale_shape((2, 192), group(500))


def test_refusals():
    with pytest.raises(ShapeError, match="no channel"):
        to_blocks(torch.tensor(1.0), CHANNEL)
    with pytest.raises(ShapeError, match="no elements"):
        block_range(torch.empty(0, 4), CHANNEL)
    with pytest.raises(ShapeError, match=r"One value a block has the shape \(2, 1\)"):
        expand(torch.zeros(2), CHANNEL, (2, 3))
    with pytest.raises(ShapeError, match=r"Expected \[2, 3\]"):
        from_blocks(torch.zeros(3, 2), CHANNEL, (2, 3))
    x = torch.zeros(2, 4)
    x[1, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\(1, 3\) = nan"):
        block_range(x, group(2))
