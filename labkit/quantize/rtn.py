"""Round-to-nearest: each weight goes to the closest point of its block's grid.

No data, and unless asked for no search: the range of a block is its min and max. Every other
method is measured against this one.
"""

from __future__ import annotations

from typing import Literal

import torch

from labkit.core.affine import choose_qparams
from labkit.core.affine import quantize as quantize_affine
from labkit.core.errors import SchemeError
from labkit.core.granularity import block_range, from_blocks, to_blocks
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import clipping


def quantize(
    weight: torch.Tensor,
    scheme: QuantScheme,
    *,
    scale_dtype: torch.dtype = torch.float16,
    clip: Literal["none", "mse"] = "none",
) -> QuantizedTensor:
    """Quantize ``weight`` ([out, in], floating point) by rounding to nearest.

    Scales are rounded to ``scale_dtype`` before the codes are chosen, so that the codes are the
    nearest ones for the scale that is stored. With float32 scales |x - x̂| <= scale / 2. A scale
    that was rounded down to float16 (by at most 2^-11 of itself) may move the end of the grid by
    another (qmax - qmin) * 2^-11 steps: 0.007 for 4 bits, 0.12 for 8.

    ``clip="mse"`` first cuts each block to the bound of least squared error (`clipping.search_clip`
    without inputs): the largest weights move by more than half a step, all others by less.

    Raises:
        NonFiniteError: the weight holds NaN or infinity.
        GroupSizeError: the group size does not divide in.
        ShapeError: the weight is empty.
        SchemeError: the weight is not floating point, a scale is beyond ``scale_dtype``, or
            ``clip`` is neither "none" nor "mse".
    """
    if clip not in ("none", "mse"):
        raise SchemeError(f"clip {clip!r}", remedy='Choose "none" or "mse".')
    if not weight.is_floating_point():
        raise SchemeError(f"the weight is {weight.dtype}", remedy="Quantize real numbers.")
    weight = weight.detach()
    if clip == "mse":
        bound = clipping.search_clip(weight, scheme, scale_dtype=scale_dtype)
        weight = clipping.clip(weight, bound, scheme)
    lo, hi = block_range(weight, scheme)
    scale, zero_point = choose_qparams(
        lo,
        hi,
        scheme.bits,
        scheme.symmetric,
        narrow_range=scheme.narrow_range,
        scale_dtype=scale_dtype,
    )
    rows = to_blocks(weight, scheme)
    codes = quantize_affine(
        rows, scale.reshape(-1, 1), zero_point.reshape(-1, 1), scheme.qmin, scheme.qmax
    )
    codes = from_blocks(codes.to(scheme.code_dtype), scheme, weight.shape)
    return QuantizedTensor(codes, scale, None if scheme.symmetric else zero_point, scheme)
