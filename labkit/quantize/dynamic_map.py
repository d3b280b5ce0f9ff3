"""Double quantization: the magnitudes of the blocks, as 8-bit codes of the "dynamic" data type.

A dynamic code spends a varying number of its 7 bits on a power of ten and the rest on a linear
fraction (Dettmers 2015, "8-Bit Approximations for Parallelism in Deep Learning", arXiv
1511.04561): magnitudes near 1 get 64 steps, those near 1e-6 a single one. QLoRA (Dettmers et al.
2023, section 3) stores the magnitudes of NF4 blocks this way: 32 bits a block become 8.

Every rounding below is that of bitsandbytes 0.50 on an x86 CPU, so the bytes are equal too.
"""

from __future__ import annotations

import torch

from labkit.core.codebook import NestedAbsmax
from labkit.core.errors import SchemeError

NESTED_BLOCK_SIZE = 256
_LAST_POINT = 65535


def dynamic_map() -> torch.Tensor:
    """Return the 256 levels: float32, rising from -0.993 to 1, with an exact 0.

    Decade k (0 for 1e-7..1e-6, 6 for 0.1..1) is cut into 2^k equal parts, whose middles are levels,
    with both signs; that makes 254, and 0 and 1 are added.
    """
    decades = []
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2**k + 1, dtype=torch.float32)
        decades.append(10.0 ** (k - 6) * ((edges[:-1] + edges[1:]) / 2))
    positive = torch.cat(decades)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


def nearest_level(unit: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return uint8 codes of the levels nearest to ``unit`` (float32 in [-1, 1], any shape).

    As in bitsandbytes the value is moved to one of 65536 evenly spaced points first, for which it
    keeps a table. The levels nearest to 0 are closer together than those points (3.05e-5): of two
    such levels the right one may be missed, by at most 1.6e-5 of the run's absmax.
    """
    # A fused multiply-add rounds once: exact in float64, then rounded to float32.
    half = (unit.clamp(-1, 1) + 1) * 0.5
    index = (half.double() * _LAST_POINT + 0.5).float().to(torch.int32)
    point = -1 + (2 * index).float() / _LAST_POINT
    midpoints = (levels[:-1] + levels[1:]) * 0.5
    return torch.bucketize(point, midpoints).to(torch.uint8)


def quantize_absmax(absmax: torch.Tensor) -> NestedAbsmax:
    """Quantize the magnitudes of blocks (float32 [blocks], finite) to 8 bits.

    Their mean is subtracted, since all are positive; each run of 256 is divided by its largest
    distance from the mean. A run in which all equal the mean has absmax 0 and comes back exactly.

    Raises:
        SchemeError: magnitudes so large that their sum overflows.
    """
    mean = absmax.mean()
    if not bool(torch.isfinite(mean)):
        raise SchemeError(
            "the mean of the magnitudes is beyond float32",
            where=f"double quantization of {absmax.numel()} blocks",
            remedy="Quantize so large a weight without double quantization, or rescale it.",
        )
    centred = absmax - mean
    full = centred.numel() // NESTED_BLOCK_SIZE * NESTED_BLOCK_SIZE
    peaks = [centred[:full].reshape(-1, NESTED_BLOCK_SIZE).abs().amax(dim=1)]
    if full < centred.numel():
        peaks.append(centred[full:].abs().max().reshape(1))
    peak = torch.cat(peaks)
    inverse = (1 / peak).repeat_interleave(NESTED_BLOCK_SIZE)[: centred.numel()]
    # 0 * (1 / 0) is not a number: bitsandbytes gives it code 0, whose level is then times 0.
    unit = (centred * inverse).nan_to_num(nan=-1.0, posinf=1.0, neginf=-1.0)
    levels = dynamic_map().to(absmax.device)
    codes = nearest_level(unit, levels)
    return NestedAbsmax(codes, peak, levels, float(mean))
