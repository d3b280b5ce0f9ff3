"""W8A8 on a CPU: a panel of 64 outputs with four tokens at a time, sixteen sums in registers.

For each step of four columns: four registers of weights (64 outputs), and for each token the four
bytes of x, the same in all lanes. Sixteen instructions do 1024 products.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.loads import load_words, splat_word
from labkit.kernels.cpu.parallel import compiled, inlined, parts, shared
from labkit.kernels.cpu.vectors import byte_dot
from labkit.kernels.int8_weight import OFFSET, PANEL, Int8Weight
from labkit.quantize.lanes import LANES, load, splat, store, to_floats

_NONE = np.int32(0)
_STRIDE = 4 * PANEL


def linear(codes: Tensor, scale: Tensor, weight: Int8Weight) -> Tensor:
    """codes int8 [tokens, in], scale float32 [tokens] -> float32 [tokens, out].

    float(sum) * (scale_x * scale_w): the bits of `labkit.quantize.int8_matmul.linear`.
    """
    missing = -codes.shape[1] % 4
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    x, packed = codes.numpy(), weight.codes.numpy()
    panels = packed.reshape(len(packed), -1)
    out = np.empty((len(x), len(panels) * PANEL), np.float32)
    less = np.empty(len(x), np.int32)
    with parts(panels.nbytes * max(1, len(x) // 4), len(panels)) as count:
        _multiply(x, scale.contiguous().numpy(), panels, weight.scale.numpy(), count, less, out)
    return torch.from_numpy(out)[:, : weight.shape[0]]


@inlined
def _four(sums, w, word):
    """One token with 64 outputs: the next four columns."""
    return (
        byte_dot(sums[0], w[0], word),
        byte_dot(sums[1], w[1], word),
        byte_dot(sums[2], w[2], word),
        byte_dot(sums[3], w[3], word),
    )


@inlined
def _weights(panel, place):
    return (
        load_words(panel, place),
        load_words(panel, place + 64),
        load_words(panel, place + 128),
        load_words(panel, place + 192),
    )


@inlined
def _put(sums, less, scale, scales, first, out):
    """64 results of a token."""
    for k in range(4):
        factor = splat(scale) * load(scales, first + LANES * k)
        store(out, first + LANES * k, to_floats(sums[k] - splat(less)) * factor)


@inlined
def _nothing():
    return (splat(_NONE), splat(_NONE), splat(_NONE), splat(_NONE))


@compiled
def _panel(x, scale, less, panel, scales, first, out):
    """All tokens with a panel, whose first output is ``first``."""
    tokens, columns, token = x.shape[0], x.shape[1], 0
    while token + 4 <= tokens:
        x0, x1, x2, x3 = x[token], x[token + 1], x[token + 2], x[token + 3]
        a = b = c = d = _nothing()
        for step in range(columns >> 2):
            w = _weights(panel, step * _STRIDE)
            a = _four(a, w, splat_word(x0, 4 * step))
            b = _four(b, w, splat_word(x1, 4 * step))
            c = _four(c, w, splat_word(x2, 4 * step))
            d = _four(d, w, splat_word(x3, 4 * step))
        _put(a, less[token], scale[token], scales, first, out[token])
        _put(b, less[token + 1], scale[token + 1], scales, first, out[token + 1])
        _put(c, less[token + 2], scale[token + 2], scales, first, out[token + 2])
        _put(d, less[token + 3], scale[token + 3], scales, first, out[token + 3])
        token += 4
    for rest in range(token, tokens):
        row, a = x[rest], _nothing()
        for step in range(columns >> 2):
            a = _four(a, _weights(panel, step * _STRIDE), splat_word(row, 4 * step))
        _put(a, less[rest], scale[rest], scales, first, out[rest])


@compiled
def _offsets(x, less):
    """What the 128 that are added to every weight add to a token's sums."""
    for token in range(x.shape[0]):
        found = np.int32(0)
        for column in range(x.shape[1]):
            found += np.int32(x[token, column])
        less[token] = np.int32(found * OFFSET)


@shared
def _multiply(x, scale, panels, scales, count, less, out):
    _offsets(x, less)
    for part in numba.prange(count):
        first, last = part * panels.shape[0] // count, (part + 1) * panels.shape[0] // count
        for panel in range(first, last):
            _panel(x, scale, less, panels[panel], scales, panel * PANEL, out)
