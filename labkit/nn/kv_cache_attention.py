"""Attention of one token over keys and values in floating point."""

from __future__ import annotations

from torch import Tensor


def attend_floats(query: Tensor, keys: Tensor, values: Tensor, softmax_scale: float) -> Tensor:
    """softmax(query · keys * softmax_scale) · values in float32; [batch, heads, dim].

    query is [batch, heads, dim], keys and values [batch, kv_heads, tokens, dim]: head h reads key
    head h // (heads / kv_heads). The result has query's dtype.
    """
    batch, heads, dim = query.shape
    kv_heads = keys.shape[1]
    shared = query.float().reshape(batch, kv_heads, heads // kv_heads, dim)
    scores = shared @ keys.float().transpose(-1, -2) * softmax_scale
    mixed = scores.softmax(dim=-1) @ values.float()
    return mixed.reshape(batch, heads, dim).to(query.dtype)
