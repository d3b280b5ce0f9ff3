"""RoPE and attention of some tokens over a float16 cache, one key head at a time."""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import address_of, float16_at
from labkit.kernels.cpu.parallel import compiled
from labkit.kernels.cpu.vectors import multiply_add, total
from labkit.nn.decoder.activations import normalize
from labkit.nn.decoder.functions import exponential
from labkit.quantize.half_numba import to_half
from labkit.quantize.lanes import LANES, load, splat, store

_ZERO = np.float32(0)


@compiled
def turn(head, cosine, sine):
    """RoPE in place: column i of a head with column i + dim/2 (float32 [dim], [dim / 2])."""
    half = cosine.shape[0]
    for place in range(half):
        a, b = head[place], head[place + half]
        head[place] = a * cosine[place] - b * sine[place]
        head[place + half] = b * cosine[place] + a * sine[place]


@compiled
def keep(values, out):
    """float32 [dim] to float16 bits."""
    for place in range(values.shape[0]):
        out[place] = to_half(values[place])


@compiled
def prepare_head(head, bias, has_bias, norm, has_norm, epsilon, cosine, sine):
    """What a query or key head goes through before its products: bias, norm (Qwen3), RoPE."""
    if has_bias:
        for place in range(head.shape[0]):
            head[place] += bias[place]
    if has_norm:
        normalize(head, head.shape[0], norm, epsilon, head)
    turn(head, cosine, sine)


@compiled
def attend_head(query, keys, values, first, last, factor, scores, out):
    """out [dim] = softmax(query . keys * factor) . values over the cache's first … last - 1.

    keys, values: uint16 [capacity, dim], float16's bits; scores: float32, room for
    ``last - first`` numbers and 15 more.
    """
    dim, count = query.shape[0], last - first
    key_start = address_of(keys) + 2 * dim * first
    value_start = address_of(values) + 2 * dim * first
    most = np.float32(-np.inf)
    for token in range(count):
        row, found = key_start + 2 * dim * token, splat(_ZERO)
        for place in range(0, dim, LANES):
            found = multiply_add(float16_at(row + 2 * place), load(query, place), found)
        score = np.float32(total(found) * factor)
        scores[token] = score
        most = score if score > most else most
    for token in range(count, -(-count // LANES) * LANES):
        scores[token] = np.float32(-np.inf)
    sums = splat(_ZERO)
    for place in range(0, count, LANES):
        weight = exponential(load(scores, place) - splat(most))
        store(scores, place, weight)
        sums = sums + weight
    # exponential() is cut at e^-87: what stands behind the last token adds nothing that counts.
    whole = total(sums)
    for place in range(0, dim, LANES):
        store(out, place, splat(_ZERO))
    for token in range(count):
        row, weight = value_start + 2 * dim * token, splat(np.float32(scores[token] / whole))
        for place in range(0, dim, LANES):
            store(out, place, multiply_add(float16_at(row + 2 * place), weight, load(out, place)))
