"""Keys by channel, values by token: each block reaches from its own minimum to its own maximum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, NonFiniteError, SchemeError
from labkit.nn.kv_cache import KVCache
from labkit.quantize.kv_rounding import round_along, round_by_channel, round_by_token


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 20),
    bits=st.integers(1, 8),
    size=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_half_a_step_and_the_ends_stay(tokens, bits, size, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, tokens, 8) * 3 + 20
    for rounded, blocks in (
        (round_by_token(x, bits, size), lambda t: t.unflatten(-1, (-1, size))),
        (
            round_by_channel(x, bits, size),
            lambda t: t[:, : tokens // size * size].unflatten(1, (tokens // size, size)).mT,
        ),
    ):
        assert rounded.shape == x.shape
        before, after = blocks(x), blocks(rounded)
        if not before.numel():
            continue
        low, high = before.amin(-1, keepdim=True), before.amax(-1, keepdim=True)
        assert ((after - before).abs() <= (high - low) / (2**bits - 1) / 2 + 1e-4).all()
        torch.testing.assert_close(after.amin(-1, keepdim=True), low)
        torch.testing.assert_close(after.amax(-1, keepdim=True), high)
    whole = tokens // size * size
    assert torch.equal(round_by_channel(x, bits, size)[:, whole:], x[:, whole:])


def test_the_cache_rounds_so_but_for_float16():
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 70, 64)
    cache = KVCache("int4", 1, 2, 64, 70)
    cache.append(0, keys, values)
    # A step in float16 is off by up to 2^-11, and there are 15 of them; a code may flip at a tie.
    for got, expected in (
        (cache.keys(0), round_by_channel(keys.half(), 4, 32)),
        (cache.values(0), round_by_token(values, 4, 32)),
    ):
        apart = (got - expected).abs()
        assert (apart > 0.02).float().mean() < 0.01 and apart.max() < 0.5


def test_what_cannot_be():
    x = torch.ones(4, 6)
    assert torch.equal(round_along(x, 2, "channel"), round_along(x, 2, "token"))
    with pytest.raises(GroupSizeError):
        round_by_token(x, 4, 4)
    with pytest.raises(SchemeError, match="runs of 0"):
        round_by_channel(x, 4, 0)
    with pytest.raises(SchemeError, match="row"):
        round_along(x, 4, "row")
    with pytest.raises(NonFiniteError):
        round_by_token(x / 0, 4)
