"""Activations, keys and values in FP8 (E4M3): one scale for each token, or one for the tensor.

FP8 has no zero-point and no levels to share out evenly: a scale only moves the numbers so that the
largest lands on 448, the end of the format. What is 2^15 times smaller is subnormal or zero.
Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433, section 4.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from labkit.core.errors import SchemeError
from labkit.core.finite import require_finite
from labkit.core.float8_tensor import FP8_MAX, to_float8


def float8_scale(x: Tensor, granularity: Literal["token", "tensor"] = "token") -> Tensor:
    """absmax / 448, float32: [..., 1] for tokens, [1, ..., 1] for the tensor; 1 where all is 0.

    Raises:
        NonFiniteError: x holds NaN or infinity.
        SchemeError: another granularity, or an x without numbers.
    """
    if granularity not in ("token", "tensor"):
        raise SchemeError(f"granularity {granularity!r}", remedy='Choose "token" or "tensor".')
    if x.ndim == 0 or x.shape[-1] == 0 or (granularity == "tensor" and x.numel() == 0):
        raise SchemeError(f"x has shape {tuple(x.shape)}", "float8_scale", "Give [..., features].")
    require_finite(x, "x")
    reach = x.detach().abs().amax(dim=-1, keepdim=True).float()
    if granularity == "tensor":
        reach = reach.amax().reshape((1,) * x.ndim)
    scale = (reach / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(reach == 0, torch.ones_like(scale), scale)


def quantize_float8(
    x: Tensor, granularity: Literal["token", "tensor"] = "token", scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [..., features] -> float8_e4m3fn codes of its shape, and the scale they were divided by.

    A scale that is given (a static one, from calibration) clips what lies beyond 448 scales.

    Raises:
        NonFiniteError: x holds NaN or infinity.
        SchemeError: as `float8_scale`, or a scale that is not positive.
    """
    if scale is None:
        scale = float8_scale(x, granularity)
    else:
        require_finite(x, "x")
        if not bool((scale > 0).all()):
            raise SchemeError("a scale is not positive", "quantize_float8", "Give absmax / 448.")
    return to_float8(x.detach().float() / scale), scale
