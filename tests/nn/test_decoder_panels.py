"""Panels hold what the blocks hold, and their products are the weights' products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_floats import LAST_FLOAT
from labkit.kernels.cpu.panel_products import panel_product
from labkit.kernels.cpu.runs import round_run, sum_run
from labkit.kernels.gguf_panels import GgufPanels
from labkit.nn.decoder.activations import gate, normalize
from labkit.quantize import gguf

_TOKENS, _ROWS, _COLUMNS = 6, 37, 512


@pytest.fixture(scope="module", params=list(NUMBERS))
def weight(request) -> tuple[GgufPanels, np.ndarray]:
    """A weight of each type in panels, and what its blocks decode to."""
    rng = np.random.default_rng(3)
    blocks = gguf.quantize(rng.standard_normal((_ROWS, _COLUMNS), np.float32), request.param)
    return GgufPanels.from_blocks(torch.from_numpy(blocks), request.param), gguf.dequantize(
        blocks, request.param
    )


def _inputs() -> np.ndarray:
    x = np.random.default_rng(4).standard_normal((_TOKENS, _COLUMNS)).astype(np.float32)
    x[2, :32] = 0  # a block of zeros
    x[3] *= 1e6
    return x


def _product(panels: GgufPanels, x: np.ndarray, *, eight: bool) -> tuple[np.ndarray, np.ndarray]:
    """(y, the x that was multiplied)."""
    codes = np.zeros(x.shape, np.uint8)
    scale = np.zeros((len(x), _COLUMNS // 32), np.float32)
    less = np.zeros((len(x), _COLUMNS // 16), np.float32)
    for token in range(len(x)):
        for block in range(_COLUMNS // 32):
            if eight:
                round_run(x[token], block, codes[token], scale[token], less[token])
            else:
                sum_run(x[token], block, less[token])
    size = len(panels.data) * 16
    out = np.full((len(x), size), np.nan, np.float32)
    kind = NUMBERS[panels.type_name]
    for index, panel in enumerate(panels.data):
        place = panel.data_ptr()
        panel_product(kind, place, _COLUMNS, eight, x, codes, scale, less, out, 16 * index)
    if eight and kind > LAST_FLOAT:
        x = (codes.view(np.int8).reshape(len(x), -1, 32) * scale[:, :, None]).reshape(x.shape)
    return out[:, :_ROWS], x


def test_a_row_comes_back_to_the_bit(weight) -> None:
    panels, decoded = weight
    assert np.array_equal(panels.dequantize().numpy(), decoded)
    assert np.array_equal(panels.row(36), decoded[36])
    order = np.random.default_rng(6).permutation(_ROWS)
    moved = GgufPanels.from_blocks(panels.blocks(), panels.type_name, order)
    assert np.array_equal(moved.dequantize().numpy(), decoded[order])


@pytest.mark.parametrize("eight", [True, False])
def test_products_are_those_of_the_decoded_weight(weight, eight) -> None:
    panels, decoded = weight
    x = _inputs()
    y, used = _product(panels, x, eight=eight)
    exact = used.astype(np.float64) @ decoded.astype(np.float64).T
    size = np.abs(used).astype(np.float64) @ np.abs(decoded).astype(np.float64).T
    # A 4-bit code is multiplied before its offset is taken off: three times the size at most.
    assert (np.abs(y - exact) <= 1e-6 * size + 1e-30).all()
    # Four tokens at a time and one by one: the order of the sums may differ, no more.
    alone = np.concatenate([_product(panels, x[t : t + 1], eight=eight)[0] for t in range(len(x))])
    assert (np.abs(y - alone) <= 1e-6 * size + 1e-30).all()


def test_rounded_activations_are_half_a_step_away_at_most() -> None:
    x = _inputs()[0]
    codes, scale = np.zeros(x.shape, np.uint8), np.zeros(16, np.float32)
    less = np.zeros(32, np.float32)
    for block in range(16):
        round_run(x, block, codes, scale, less)
    signed = codes.view(np.int8)
    step = np.abs(x.reshape(16, 32)).max(axis=1) / np.float32(127)
    assert np.array_equal(scale, step)
    assert (np.abs(signed * np.repeat(scale, 32) - x) <= np.repeat(scale, 32) * 0.5001).all()
    assert np.allclose(less, -(signed.reshape(32, 16).sum(axis=1) * np.repeat(scale, 2)))


def test_norm_and_silu_are_the_formulas() -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((2, 64)).astype(np.float32) * 20
    out = np.empty(64, np.float32)
    normalize(x, 64, weight, np.float32(1e-5), out)
    wide = x.astype(np.float64)
    assert np.allclose(out, wide / np.sqrt((wide**2).mean() + 1e-5) * weight, rtol=1e-6)
    gates, ups = x.copy(), weight
    gates[:3] = (-200, 200, 0)
    exact = gates.astype(np.float64) / (1 + np.exp(-gates.astype(np.float64))) * ups
    gate(gates, ups, 0, 64)
    assert np.allclose(gates, exact, rtol=1e-6, atol=1e-30)
