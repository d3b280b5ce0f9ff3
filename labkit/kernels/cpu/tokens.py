"""Activations to int8 on a CPU, a scale for each token: to the bit what `reference.tokens` gives.

Codes are rounded as in `labkit.kernels.cpu.runs`.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.parallel import compiled, float_rows, parts, shared
from labkit.kernels.cpu.runs import REACH, ROUND, ROUND_BITS, SMALLEST, complain, rounded
from labkit.kernels.cpu.vectors import largest
from labkit.quantize.lanes import (
    LANES,
    absolute,
    any_lane,
    load,
    select,
    splat,
    store_bytes,
)

_ZERO, _LARGEST = np.float32(0), np.finfo(np.float32).max


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., features] -> codes int8 [tokens, features], scale float32 [tokens, 1].

    Raises NonFiniteError for NaN or infinity.
    """
    codes, scale = quantize_rows(float_rows(x, x.shape[-1]))
    return torch.from_numpy(codes), torch.from_numpy(scale).reshape(-1, 1)


def quantize_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [tokens, features] -> codes int8 of its shape, scale float32 [tokens]."""
    codes = np.empty(rows.shape, np.int8)
    scale = np.empty(len(rows), np.float32)
    with parts(rows.nbytes, max(1, len(rows))) as count:
        finite = _quantize(rows, count, codes.view(np.uint8), scale)
    if not finite:
        complain(rows)
    return codes, scale


@compiled
def _reach(row):
    """The largest magnitude of a row; infinity if one is infinite or NaN."""
    lanes, done = splat(_ZERO), 0
    wrong = lanes > lanes
    while done + LANES <= row.shape[0]:
        x = absolute(load(row, done))
        lanes = select(x > lanes, x, lanes)
        wrong = wrong | (select(x <= splat(_LARGEST), splat(_ZERO), splat(REACH)) > splat(_ZERO))
        done += LANES
    most = np.float32(np.inf) if any_lane(wrong) else largest(lanes)
    for place in range(done, row.shape[0]):
        x = np.abs(row[place])
        most = x if x > most else most
        most = most if x <= _LARGEST else np.float32(np.inf)
    return most


@compiled
def _codes(row, scale, out):
    """out = round(row / scale), as bytes."""
    done = 0
    while done + LANES <= row.shape[0]:
        store_bytes(out, done, rounded(load(row, done), scale))
        done += LANES
    for place in range(done, row.shape[0]):
        last = np.float32(row[place] / scale + ROUND)
        out[place] = np.uint8((last.view(np.int32) - ROUND_BITS) & 255)


@compiled
def round_token(row, codes, scale):
    """codes = round(row / scale[0]), uint8 that hold int8; 1 if the row is not finite, else 0."""
    most = _reach(row)
    if most > _LARGEST:
        return 1
    scale[0] = np.float32(1) if most == 0 else max(np.float32(most / REACH), SMALLEST)
    _codes(row, scale[0], codes)
    return 0


@shared
def _quantize(rows, count, codes, scale):
    tokens, bad = rows.shape[0], 0
    for part in numba.prange(count):
        for token in range(part * tokens // count, (part + 1) * tokens // count):
            bad += round_token(rows[token], codes[token], scale[token : token + 1])
    return bad == 0
