"""Attention of one token on a CPU: keys are read once, then values, 8 bits a number.

The scale of a key leaves its dot product, and the scale of a value joins its weight, so inside the
loops over a head's numbers there are only 8-bit codes made float32 in a register.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.fp8_lanes import VALUES, floats_of
from labkit.kernels.cpu.loads import load_signed_bytes
from labkit.kernels.cpu.parallel import compiled, inlined, parts, shared
from labkit.kernels.cpu.vectors import multiply_add, total
from labkit.quantize.lanes import LANES, load, splat, store, to_floats

_ZERO = np.float32(0)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    lengths: Tensor,
    factor: float,
) -> Tensor:
    """float32 [batch, heads, dim]; see `labkit.kernels.attention`."""
    batch, heads, dim = query.shape
    if batch == 0:
        return torch.zeros(query.shape)
    out = np.zeros((batch * heads, dim), np.float32)
    caches = [
        cache.view(torch.uint8).numpy().reshape(-1, *cache.shape[2:]) for cache in (keys, values)
    ]
    scales = [scale.numpy().reshape(-1, scale.shape[-1]) for scale in (key_scale, value_scale)]
    rows = query.float().contiguous().numpy().reshape(-1, dim)
    fp8 = keys.dtype == torch.float8_e4m3fn
    with parts(keys.nbytes, max(1, len(caches[0]))) as count:
        _attend(rows, *caches, *scales, lengths.numpy(), np.float32(factor), fp8, count, out)
    return torch.from_numpy(out).reshape(query.shape)


@inlined
def _lanes(codes, place, fp8):
    """Sixteen codes as float32."""
    if fp8:
        return floats_of(codes, place)
    return to_floats(load_signed_bytes(codes, place))


@inlined
def _one(code, fp8):
    return VALUES[code] if fp8 else np.float32(np.int8(code))


@compiled
def _dot(x, codes, fp8):
    sums, place = splat(_ZERO), 0
    while place + LANES <= x.shape[0]:
        sums = multiply_add(_lanes(codes, place, fp8), load(x, place), sums)
        place += LANES
    result = total(sums)
    for rest in range(place, x.shape[0]):
        result += _one(codes[rest], fp8) * x[rest]
    return result


@compiled
def _add(weight, codes, fp8, out):
    """out += weight * codes."""
    place = 0
    while place + LANES <= out.shape[0]:
        store(out, place, multiply_add(_lanes(codes, place, fp8), splat(weight), load(out, place)))
        place += LANES
    for rest in range(place, out.shape[0]):
        out[rest] += weight * _one(codes[rest], fp8)


@compiled
def _head(x, keys, values, key_scale, value_scale, length, factor, fp8, scores, out):
    """One head: scores of all tokens, their softmax, and the sum of values that it weighs."""
    most = np.float32(-np.inf)
    for token in range(length):
        score = _dot(x, keys[token], fp8) * (key_scale[token] * factor)
        scores[token] = score
        most = score if score > most else most
    whole = _ZERO
    for token in range(length):
        scores[token] = np.exp(np.float32(scores[token] - most))
        whole += scores[token]
    for token in range(length):
        _add(scores[token] / whole * value_scale[token], values[token], fp8, out)


@shared
def _attend(xs, keys, values, key_scale, value_scale, lengths, factor, fp8, count, out):
    shared_heads, capacity = keys.shape[0], keys.shape[1]
    repeat, per_row = xs.shape[0] // shared_heads, shared_heads // lengths.shape[0]
    for part in numba.prange(count):
        scores = np.empty(capacity, np.float32)
        first, last = part * shared_heads // count, (part + 1) * shared_heads // count
        for head in range(first, last):
            length = lengths[head // per_row]
            ks, vs = key_scale[head], value_scale[head]
            for one in range(head * repeat, (head + 1) * repeat):
                _head(
                    xs[one], keys[head], values[head], ks, vs, length, factor, fp8, scores, out[one]
                )
