"""Attention of one new token over a key and value cache of 8-bit numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.kernels import checks, choose

_CACHES = (torch.int8, torch.float8_e4m3fn)
_WHERE = "decode_attention"


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    lengths: Tensor,
    *,
    softmax_scale: float | None = None,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """softmax(query · keys * softmax_scale) · values, [batch, heads, dim] in query's dtype.

    Heads share keys in runs: head h reads key head h // (heads / kv_heads) (GQA; MQA with one).

    Args:
        query: float32, float16 or bfloat16 [batch, heads, dim].
        keys, values: int8 or float8_e4m3fn [batch, kv_heads, capacity, dim], contiguous.
        key_scale, value_scale: float32 [batch, kv_heads, capacity]: a scale for each token and
            head; a key is code * scale.
        lengths: int32 or int64 [batch]: how many tokens of the cache count, 1 … capacity. What
            lies behind them is not read.
        softmax_scale: 1 / sqrt(dim) if None.

    Raises:
        SchemeError: dtypes, devices, strides or an implementation that cannot be.
        ShapeError: parts that do not fit each other, or lengths outside 1 … capacity.
    """
    checks.require_dtype("query", query, checks.DTYPES, _WHERE)
    checks.require_dtype("keys", keys, _CACHES, _WHERE)
    checks.require_dtype("values", values, (keys.dtype,), _WHERE)
    checks.require_dtype("lengths", lengths, (torch.int32, torch.int64), _WHERE)
    if query.ndim != 3 or keys.ndim != 4:
        raise ShapeError(
            f"query has shape {tuple(query.shape)}, keys {tuple(keys.shape)}",
            _WHERE,
            "Expected [batch, heads, dim] and [batch, kv_heads, capacity, dim].",
        )
    batch, heads, dim = query.shape
    kv_heads, capacity = keys.shape[1:3]
    checks.require_shape("keys", keys, (batch, kv_heads, capacity, dim), _WHERE)
    checks.require_shape("values", values, tuple(keys.shape), _WHERE)
    checks.require_shape("lengths", lengths, (batch,), _WHERE)
    for name, scale in (("key_scale", key_scale), ("value_scale", value_scale)):
        checks.require_dtype(name, scale, (torch.float32,), _WHERE)
        checks.require_shape(name, scale, (batch, kv_heads, capacity), _WHERE)
    if kv_heads == 0 or heads % kv_heads:
        raise ShapeError(f"{heads} heads for {kv_heads} key heads", _WHERE, "A multiple fits.")
    named = dict(query=query, values=values, key_scale=key_scale, value_scale=value_scale)
    for name, part in {**named, "lengths": lengths}.items():
        checks.require_device(name, part, keys.device, _WHERE)
    for name, part in (("keys", keys), ("values", values)):
        checks.require_contiguous(name, part, _WHERE)
    if batch and (int(lengths.min()) < 1 or int(lengths.max()) > capacity):
        raise ShapeError(
            f"lengths from {int(lengths.min())} to {int(lengths.max())}",
            _WHERE,
            f"Expected 1 … {capacity}.",
        )
    kernel = choose.module("attention", keys.device, implementation)
    factor = 1 / math.sqrt(dim) if softmax_scale is None else softmax_scale
    parts = (keys, values, key_scale.contiguous(), value_scale.contiguous())
    y = kernel.attend(query.detach(), *parts, lengths.to(torch.int64), factor)
    return y.to(query.dtype)
