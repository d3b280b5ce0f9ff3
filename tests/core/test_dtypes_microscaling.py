"""MXFP4: the specification's rule, and the GGUF library's own reading of the same block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize

from labkit.core.errors import GroupSizeError, NonFiniteError
from labkit.core.microscaling import MXTensor, quantize_mxfp4


def random_blocks(rows: int = 64, blocks: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, blocks * 32, generator=generator)
    return x * torch.exp2(torch.randint(-30, 30, (rows, 1), generator=generator))


def gguf_bytes(mx: MXTensor) -> np.ndarray:
    """The block of GGUF: the scale, then 16 bytes with element j low and element j + 16 high."""
    codes = mx.codes.reshape(-1, 32).numpy()
    nibbles = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([mx.scale_codes.reshape(-1, 1).numpy(), nibbles], axis=1)


def test_gguf_reads_our_codes_as_the_same_numbers() -> None:
    x = random_blocks()
    mx = quantize_mxfp4(x)
    theirs = gguf_dequantize(gguf_bytes(mx), GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(mx.dequantize().numpy().reshape(-1, 32), theirs)


def test_gguf_chooses_the_same_scales_and_numbers() -> None:
    x = random_blocks(seed=1)
    mx = quantize_mxfp4(x)
    theirs = gguf_quantize(x.numpy().reshape(-1, 32), GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(theirs[:, 0], mx.scale_codes.flatten().numpy())
    numbers = gguf_dequantize(theirs, GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(mx.dequantize().numpy().reshape(-1, 32), numbers)


def test_error_is_within_half_a_gap_or_saturation() -> None:
    x = random_blocks(seed=2)
    mx = quantize_mxfp4(x)
    scale = torch.exp2(mx.scale_codes.float() - 127).repeat_interleave(32, dim=-1)
    amax = x.reshape(64, 4, 32).abs().amax(-1).repeat_interleave(32, dim=-1)
    assert (amax / scale >= 4).all() and (amax / scale < 8).all()
    magnitude = x.abs() / scale
    gap = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    error = (mx.dequantize() - x).abs() / scale
    assert (error <= torch.where(magnitude > 6, magnitude - 6, gap / 2)).all()


def test_quantizing_twice_changes_nothing() -> None:
    once = quantize_mxfp4(random_blocks(seed=3)).dequantize()
    assert torch.equal(quantize_mxfp4(once).dequantize(), once)


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 2.0**-126, 1.0, 3e38])
def test_extreme_blocks(magnitude: float) -> None:
    x = torch.full((32,), magnitude)
    mx = quantize_mxfp4(x)
    result = mx.dequantize()
    assert result.isfinite().all()
    assert (result - x).abs().max() <= max(magnitude / 4, 2.0**-129)


def test_the_smallest_scale_is_used() -> None:
    tiny = quantize_mxfp4(torch.full((32,), 1.5 * 2.0**-127))
    assert tiny.scale_codes.tolist() == quantize_mxfp4(torch.zeros(32)).scale_codes.tolist() == [0]
    assert tiny.dequantize().tolist() == [1.5 * 2.0**-127] * 32


def test_shapes_and_bits() -> None:
    mx = quantize_mxfp4(torch.randn(2, 3, 64, dtype=torch.float64))
    assert mx.codes.shape == (2, 3, 64) and mx.codes.dtype == torch.uint8
    assert mx.scale_codes.shape == (2, 3, 2) and mx.scale_codes.dtype == torch.uint8
    assert mx.bits_per_weight == 4.25
    assert quantize_mxfp4(torch.zeros(5, 0)).dequantize().shape == (5, 0)


def test_a_nan_scale_makes_its_block_nan() -> None:
    mx = quantize_mxfp4(torch.ones(64))
    mx.scale_codes[1] = 255
    assert mx.dequantize().isnan().tolist() == [False] * 32 + [True] * 32


@pytest.mark.parametrize("shape", [(31,), (4, 33), ()])
def test_an_axis_without_whole_blocks_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GroupSizeError, match="32"):
        quantize_mxfp4(torch.ones(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    x = torch.ones(2, 32)
    x[1, 5] = bad
    with pytest.raises(NonFiniteError, match=r"1, 5"):
        quantize_mxfp4(x)
