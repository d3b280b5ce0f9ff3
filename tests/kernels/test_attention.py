"""Attention over an 8-bit cache: within a stated distance of the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import SchemeError, ShapeError
from labkit.kernels import decode_attention


def _cache(batch, kv_heads, capacity, dim, dtype):
    """Codes and scales; what lies behind the length is NaN in the scales."""
    if dtype == torch.int8:
        codes = torch.randint(-127, 128, (batch, kv_heads, capacity, dim), dtype=torch.int8)
    else:
        codes = torch.randn(batch, kv_heads, capacity, dim).to(dtype)
    reach = 127 if dtype == torch.int8 else 1
    return codes, (torch.rand(batch, kv_heads, capacity) + 0.5) / reach


def _inputs(batch, kv_heads, repeat, capacity, dim, dtype, seed):
    torch.manual_seed(seed)
    lengths = torch.randint(1, capacity + 1, (batch,))
    keys, key_scale = _cache(batch, kv_heads, capacity, dim, dtype)
    values, value_scale = _cache(batch, kv_heads, capacity, dim, dtype)
    for row, length in enumerate(lengths.tolist()):
        key_scale[row, :, length:] = value_scale[row, :, length:] = float("nan")
    query = torch.randn(batch, kv_heads * repeat, dim)
    return query, keys, values, key_scale, value_scale, lengths


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    repeat=st.integers(1, 3),
    capacity=st.integers(1, 70),
    dim=st.sampled_from([1, 8, 16, 33, 64, 128]),
    dtype=st.sampled_from([torch.int8, torch.float8_e4m3fn]),
    query_dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_attention(batch, kv_heads, repeat, capacity, dim, dtype, query_dtype, seed):
    query, *rest = _inputs(batch, kv_heads, repeat, capacity, dim, dtype, seed)
    query = query.to(query_dtype)
    y = decode_attention(query, *rest)
    exact = decode_attention(query, *rest, implementation="reference").double()
    assert y.dtype == query_dtype and y.shape == query.shape
    values, value_scale = rest[1].float(), rest[3]
    reach = (values.abs() * value_scale.nan_to_num()[..., None]).max()
    # Scores of up to about 50 are off by some 1e-5, and so, relatively, are the weights.
    bound = (1e-4 + 2 * torch.finfo(query_dtype).eps) * reach
    assert ((y.double() - exact).abs() <= bound).all()


def test_one_token_is_its_value():
    query, keys, values, ks, vs, _ = _inputs(2, 2, 2, 5, 16, torch.int8, 0)
    ks, vs = torch.ones_like(ks), torch.ones_like(vs)
    y = decode_attention(query, keys, values, ks, vs, torch.tensor([1, 1], dtype=torch.int32))
    assert torch.equal(y, values[:, :, 0].float().repeat_interleave(2, dim=1))


def test_softmax_scale_and_strides():
    query, *rest = _inputs(2, 1, 4, 9, 16, torch.int8, 0)
    spread = decode_attention(query, *rest, softmax_scale=0.25)
    assert torch.equal(spread, decode_attention(query, *rest))
    strided = query.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous() and torch.equal(decode_attention(strided, *rest), spread)
    even = decode_attention(query, *rest, softmax_scale=0.0)
    assert torch.allclose(even[0, 0], even[0, 3])


def test_bad_input_is_named():
    query, keys, values, ks, vs, lengths = _inputs(2, 2, 1, 5, 16, torch.int8, 0)
    good = {"query": query, "keys": keys, "values": values, "key_scale": ks, "value_scale": vs}
    good["lengths"] = lengths
    for name, value, words in (
        ("query", query.double(), "query is torch.float64"),
        ("query", query[0], "query has shape"),
        ("query", query[:, :1], "1 heads for 2 key heads"),
        ("keys", keys.short(), "keys is torch.int16"),
        ("keys", keys[..., :8], "keys has shape"),
        ("keys", keys.transpose(1, 2).contiguous().transpose(1, 2), "keys is not contiguous"),
        ("values", values[:, :, :3], "values has shape"),
        ("values", values.to(torch.float8_e4m3fn), "values is torch.float8"),
        ("key_scale", ks[:, :, :2], "key_scale has shape"),
        ("value_scale", vs.double(), "value_scale is torch.float64"),
        ("lengths", lengths * 0, "lengths from 0"),
        ("lengths", lengths * 0 + 6, "to 6"),
        ("lengths", lengths[:1], "lengths has shape"),
        ("lengths", lengths.to("meta"), "lengths is on meta"),
    ):
        with pytest.raises((SchemeError, ShapeError), match=words.replace(".", r"\.")):
            decode_attention(**(good | {name: value}))
