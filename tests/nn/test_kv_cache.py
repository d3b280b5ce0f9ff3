"""Caches in 16, 8 and 4 bits: what goes in comes out, within each kind's step."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.nn.kv_cache import KINDS, KVCache
from labkit.nn.kv_cache_attention import attend_floats


def _filled(kind, pieces, batch=2, kv_heads=2, dim=64, seed=0, capacity=None, layers=1):
    """A cache to which pieces of so many tokens were appended, and all of them in float32."""
    torch.manual_seed(seed)
    cache = KVCache(kind, layers, kv_heads, dim, capacity or sum(pieces), batch)
    keys, values = torch.randn(2, batch, kv_heads, sum(pieces), dim)
    keys[..., 0] += 20  # a channel that is large in every token, as keys have
    start = 0
    for piece in pieces:
        part = slice(start, start + piece)
        for layer in range(layers):
            cache.append(layer, keys[:, :, part], values[:, :, part])
        start += piece
    return cache, keys, values


def _step(kind, x, dim):
    """Half a step of each block: the bound of a rounding error."""
    if kind == "fp16":
        return x.abs() * 2**-11 + 2**-25
    if kind == "int8":
        return x.abs().amax(-1, keepdim=True) / 127 / 2 * 1.001
    if kind == "fp8":
        reach = x.abs().amax(-1, keepdim=True)
        return (x.abs() * 2**-4).maximum(reach / 448 * 2**-10) * 1.001
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    largest = low.abs().maximum(high.abs())
    return (high - low) / 15 / 2 * 1.01 + largest * 2**-9  # minimum and step in float16


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    pieces=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    dim=st.sampled_from([8, 32, 64]),
    seed=st.integers(0, 99),
)
def test_what_goes_in_comes_out_within_half_a_step(kind, pieces, dim, seed):
    cache, keys, values = _filled(kind, pieces, dim=dim, seed=seed)
    tokens = sum(pieces)
    assert cache.length == tokens
    got_keys, got_values = cache.keys(0), cache.values(0)
    assert got_keys.shape == keys.shape and got_keys.dtype == torch.float32
    if kind == "int4":
        whole = tokens // 32 * 32
        runs = keys[:, :, :whole].unflatten(2, (whole // 32, 32))
        error = (got_keys[:, :, :whole].unflatten(2, (whole // 32, 32)) - runs).abs()
        assert (error <= _step(kind, runs, 3)).all() if whole else True
        newest = keys[:, :, whole:]
        assert torch.equal(got_keys[:, :, whole:], newest.half().float())
        groups = values.unflatten(-1, (-1, min(32, dim)))
        error = (got_values.unflatten(-1, (-1, min(32, dim))) - groups).abs()
        assert (error <= _step(kind, groups, -1)).all()
    else:
        assert ((got_keys - keys).abs() <= _step(kind, keys, -1)).all()
        assert ((got_values - values).abs() <= _step(kind, values, -1)).all()


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    cuts=st.lists(st.integers(1, 99), max_size=6, unique=True),
)
def test_the_pieces_do_not_matter(kind, cuts):
    edges = [0, *sorted(cuts), 100]
    pieces = [b - a for a, b in pairwise(edges)]
    one, _, _ = _filled(kind, [100])
    many, _, _ = _filled(kind, pieces)
    assert torch.equal(one.keys(0), many.keys(0)) and torch.equal(one.values(0), many.values(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_over_the_numbers_held(kind, dtype):
    cache, _, _ = _filled(kind, [33, 1, 1], capacity=64)
    query = torch.randn(2, 6, 64).to(dtype)
    got = cache.attend(0, query)
    expected = attend_floats(query, cache.keys(0), cache.values(0), 64**-0.5)
    assert got.dtype == dtype and got.shape == query.shape
    torch.testing.assert_close(
        got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        expected,
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, None].float(), cache.keys(0), cache.values(0), enable_gqa=True
        )[:, :, 0].to(dtype),
        rtol=1e-2,
        atol=1e-4,
    )
    assert not torch.equal(got, cache.attend(0, query, softmax_scale=1.0))
    even = cache.attend(0, query, softmax_scale=0.0).float()  # the mean of all values
    mean = cache.values(0).mean(dim=2).repeat_interleave(3, dim=1)
    torch.testing.assert_close(even, mean, rtol=1e-2, atol=1e-2)


def test_bytes_are_those_of_the_formula():
    """2 * layers * kv_heads * dim * tokens * bits / 8, and the scales that each kind states."""
    numbers = 2 * 3 * 2 * 64 * 128
    vectors = numbers // 64
    sizes = {kind: KVCache(kind, 3, 2, 64, 128).nbytes for kind in KINDS}
    assert sizes["fp16"] == numbers * 2
    assert sizes["int8"] == sizes["fp8"] == numbers + vectors * 4
    newest = 3 * 2 * 64 * 32 * 2
    assert sizes["int4"] == numbers // 2 + numbers // 32 * 4 + newest
    assert KVCache("int8", 3, 2, 64, 128).bits_per_number == 8.5


def test_a_channel_that_is_always_large_costs_its_neighbours_nothing():
    """int8's scale is the token's: the loud channel takes its levels. int4's is the channel's."""
    torch.manual_seed(0)
    keys = torch.randn(1, 1, 64, 64)
    keys[..., 0] += 500
    errors = {}
    for kind in ("int8", "int4"):
        cache = KVCache(kind, 1, 1, 64, 64)
        cache.append(0, keys, keys)
        errors[kind] = (cache.keys(0) - keys)[..., 1:].square().mean()
    assert errors["int4"] < errors["int8"] / 10


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_reordered_and_forgotten(kind):
    cache, _, _ = _filled(kind, [40])
    before = cache.keys(0), cache.values(0)
    other = copy.deepcopy(cache)
    other.select(torch.tensor([1, 1, 0]))
    assert other.batch == 3 and torch.equal(other.keys(0), before[0][[1, 1, 0]])
    assert torch.equal(other.values(0), before[1][[1, 1, 0]])
    assert other.attend(0, torch.randn(3, 2, 64)).shape == (3, 2, 64)
    assert torch.equal(cache.keys(0), before[0])
    size = cache.nbytes
    cache.reset()
    assert cache.length == 0 and cache.keys(0).shape[2] == 0 and cache.nbytes == size


def test_length_within_a_step_is_that_of_the_last_layer():
    cache = KVCache("int8", 2, 1, 8, 4)
    cache.append(0, torch.ones(1, 1, 3, 8), torch.ones(1, 1, 3, 8))
    assert (cache.length, cache.layer_length(0), cache.layer_length(1)) == (0, 3, 0)
    assert "tokens=0/4" in repr(cache)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_number_leaves_the_cache_as_it_was(kind):
    cache, _, _ = _filled(kind, [31], batch=1, capacity=40)
    before = cache.keys(0), cache.values(0)
    good, bad = torch.ones(1, 2, 2, 64), torch.full((1, 2, 2, 64), float("nan"))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(NonFiniteError):
            cache.append(0, *pair)
    assert cache.length == 31
    assert torch.equal(cache.keys(0), before[0]) and torch.equal(cache.values(0), before[1])


@pytest.mark.parametrize("kind", ["fp16", "int4"])
def test_float16_overflow_is_said(kind):
    cache = KVCache(kind, 1, 1, 8, 4)
    with pytest.raises(NonFiniteError, match="65504"):
        cache.append(0, torch.full((1, 1, 1, 8), 1e5), torch.ones(1, 1, 1, 8))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_scale_reaches_where_float16_does_not(kind):
    cache = KVCache(kind, 1, 1, 8, 4)
    cache.append(0, torch.full((1, 1, 1, 8), 1e30), torch.zeros(1, 1, 1, 8))
    torch.testing.assert_close(cache.keys(0), torch.full((1, 1, 1, 8), 1e30))
    assert torch.equal(cache.values(0), torch.zeros(1, 1, 1, 8))


def test_bad_arguments():
    for bad in (dict(kind="int5"), dict(layers=0), dict(capacity=-1), dict(batch=1.5)):
        with pytest.raises(SchemeError):
            KVCache(**(dict(kind="int8", layers=1, kv_heads=1, head_dim=8, capacity=4) | bad))
    for dim in (7, 48):
        with pytest.raises(SchemeError, match="head_dim"):
            KVCache("int4", 1, 1, dim, 4)
    cache = KVCache("int8", 1, 2, 8, 4)
    with pytest.raises(ShapeError, match="at least one token"):
        cache.attend(0, torch.ones(1, 2, 8))
    x = torch.ones(1, 2, 3, 8)
    for keys, values in ((x, x[:, :, :2]), (x[:, :1], x[:, :1]), (x[0], x[0]), (x[:, :, :0],) * 2):
        with pytest.raises(ShapeError):
            cache.append(0, keys, values)
    cache.append(0, x, x)
    with pytest.raises(ShapeError, match="capacity of 4"):
        cache.append(0, x, x)
    for query in (torch.ones(1, 3, 8), torch.ones(2, 2, 8), torch.ones(1, 2, 4), torch.ones(2, 8)):
        with pytest.raises(ShapeError, match="query"):
            cache.attend(0, query)
