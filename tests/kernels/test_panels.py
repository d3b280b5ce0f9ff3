"""GGUF weights in panels: the file's bytes come back, and products keep to the formula."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.kernels import GgufPanels, gguf_linear, panel_linear
from labkit.kernels.cpu.runs import round_token
from labkit.kernels.gguf_panels import HALF_FIRST
from labkit.kernels.reference import runs
from labkit.quantize import gguf
from labkit.quantize.gguf_types import block_type

TYPES = list(HALF_FIRST)


def _blocks(rows, columns, name, seed=0):
    torch.manual_seed(seed)
    return torch.from_numpy(gguf.quantize(torch.randn(rows, columns), name))


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 3), seed=st.integers(0, 99))
def test_bytes_of_the_file_come_back(name, rows, blocks, seed):
    torch.manual_seed(seed)
    nbytes = block_type(name).nbytes * blocks
    data = torch.randint(0, 256, (rows, nbytes), dtype=torch.uint8)
    panels = GgufPanels.from_blocks(data, name)
    assert torch.equal(panels.blocks(), data)
    assert panels.nbytes == -(-rows // 16) * 16 * nbytes


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 50),
    tokens=st.integers(1, 9),
    columns=st.sampled_from([256, 512, 1280]),
    bits=st.sampled_from([8, 16]),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_the_formula(name, rows, tokens, columns, bits, seed):
    panels = GgufPanels.from_blocks(_blocks(rows, columns, name, seed), name)
    x = torch.randn(tokens, columns) * torch.rand(tokens, columns) ** 4 * 10
    y, exact = (
        panel_linear(x, panels, activation_bits=bits, implementation=how)
        for how in (None, "reference")
    )
    if bits == 8:
        codes, scale = runs.quantize(x)
        x = (codes.float().reshape(tokens, -1, 32) * scale[..., None]).reshape(x.shape)
    # A run is a float32 product, or 16 of them, that is added: so many roundings of such terms.
    terms = _magnitudes(panels, name)
    bound = 2.0**-23 * (columns / 32 + (8 if bits == 8 else 24)) * (x.abs().double() @ terms.T)
    assert ((y.double() - exact.double()).abs() <= bound + 1e-30).all()


def _magnitudes(panels, name):
    """|d * scale * code| and |minimum| of each weight, float64 [out, in]: what a sum is made of."""
    weight = panels.dequantize().double().abs()
    if name not in ("Q4_K", "Q5_K"):
        # x is signed and codes are shifted: 8, 32 or 128 steps may cancel.
        return weight + weight.amax(dim=1, keepdim=True) * 2
    blocks = panels.blocks().numpy().reshape(len(weight), -1, block_type(name).nbytes)
    halves = np.ascontiguousarray(blocks[:, :, :4]).view(np.float16).astype(np.float64)
    codes = {"Q4_K": 15, "Q5_K": 31}[name]
    most = np.abs(halves[:, :, 0]) * 63 * codes + np.abs(halves[:, :, 1]) * 63
    return torch.from_numpy(most).repeat_interleave(256, dim=1)


@pytest.mark.parametrize("name", TYPES)
def test_whole_numbers_are_exact(name):
    """Codes of x that fit int8 with scale 1 or a power of two leave nothing to round."""
    blocks = _blocks(33, 512, name)
    x = torch.randint(-126, 127, (3, 512)).float()
    x[:, ::32] = 127
    y = panel_linear(x, GgufPanels.from_blocks(blocks, name), activation_bits=8)
    exact = gguf_linear(x, blocks, name, implementation="reference").double()
    assert ((y.double() - exact).abs() <= 3e-5 * exact.abs().amax()).all()


@given(seed=st.integers(0, 99), tokens=st.integers(1, 5), features=st.sampled_from([32, 64, 320]))
@settings(max_examples=25, deadline=None)
def test_runs_have_the_bits_of_the_reference(seed, tokens, features):
    torch.manual_seed(seed)
    powers = 10.0 ** torch.randint(-44, 38, (tokens, features // 32))
    x = torch.randn(tokens, features) * powers.repeat_interleave(32, dim=1)
    x[0, :32] = 0
    plain, step = runs.quantize(x)
    sums = plain.int().reshape(tokens, -1, 16).sum(2)
    for row, wanted, size, found in zip(x.numpy(), plain, step, sums, strict=True):
        codes, scale = np.empty(features, np.uint8), np.empty(features // 32, np.float32)
        less = np.empty(features // 16, np.float32)
        assert round_token(row, codes, scale, less) == 0
        assert np.array_equal(codes.view(np.int8), wanted.numpy())
        assert np.array_equal(scale, size.numpy())
        assert np.array_equal(less, -(found.numpy() * np.repeat(scale, 2)).astype(np.float32))


def test_axes_dtypes_bias_and_no_tokens():
    panels, bias = GgufPanels.from_blocks(_blocks(20, 256, "Q4_0"), "Q4_0"), torch.randn(20)
    x = torch.randn(256, 3, 2).permute(2, 1, 0)
    for bits in (16, 8):
        run = partial(panel_linear, activation_bits=bits)
        y = run(x, panels, bias)
        assert torch.equal(y.reshape(6, 20), run(x.reshape(6, 256), panels) + bias)
        assert run(x.bfloat16(), panels).dtype == torch.bfloat16
        assert run(x[:0], panels).shape == (0, 3, 20)


def _floats():
    """A weight [20, 36] of float32."""
    return GgufPanels.from_blocks(torch.randn(20, 36).view(torch.uint8), "F32")


def test_bad_input_is_named():
    panels = GgufPanels.from_blocks(_blocks(20, 256, "Q4_0"), "Q4_0")
    x = torch.randn(2, 256)
    with pytest.raises(NonFiniteError, match="token 1 holds NaN"):
        bad = x.index_put((torch.tensor(1), torch.tensor(40)), torch.tensor(np.nan))
        panel_linear(bad, panels, activation_bits=8)
    with pytest.raises(NonFiniteError, match="token 0 holds NaN or infinity"):
        panel_linear(torch.full((2, 256), torch.inf), panels, activation_bits=8)
    assert not panel_linear(bad, panels)[1].isfinite().any()
    for wrong, words in (
        (lambda: panel_linear(x[:, :32], panels), "x has shape"),
        (lambda: panel_linear(x, panels, implementation="gpu"), "laid out for a CPU"),
        (lambda: panel_linear(x, panels, activation_bits=4), "activation_bits is 4"),
        (lambda: GgufPanels.from_blocks(panels.blocks(), "Q5_0"), "no panels for Q5_0"),
        (lambda: panel_linear(x[:, :36], _floats()), "without codes"),
        (lambda: GgufPanels.from_blocks(panels.blocks()[:, :20], "Q4_0"), "multiple of 18"),
        (lambda: GgufPanels.from_blocks(panels.blocks().int(), "Q4_0"), "blocks is torch.int32"),
        (lambda: GgufPanels(panels.data[:1], "Q4_0", panels.shape), "data has shape"),
        (lambda: GgufPanels(panels.data, "Q4_0", (20, 250)), "250 columns"),
    ):
        with pytest.raises((SchemeError, ShapeError), match=words):
            wrong()
