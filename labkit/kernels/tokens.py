"""Activations to int8, one scale for each token."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.kernels import checks, choose


def quantize_tokens(
    x: Tensor, *, implementation: choose.Implementation | None = None
) -> tuple[Tensor, Tensor]:
    """x [..., features] -> codes int8 of its shape, and scale float32 [..., 1].

    The largest magnitude of a token becomes 127 or -127; a token of zeros has scale 1. These are
    the codes of `labkit.quantize.activation.Dynamic` with 8 bits per token.

    Raises:
        SchemeError: x is not float32, float16 or bfloat16.
        ShapeError: x has no axis, or no features.
        NonFiniteError: x holds NaN or infinity.
    """
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}", "quantize_tokens", "Give [..., features]."
        )
    checks.require_activations(x, x.shape[-1], x.device, "quantize_tokens")
    kernel = choose.module("tokens", x.device, implementation)
    if x.numel() == 0:
        return x.to(torch.int8), torch.ones(*x.shape[:-1], 1, device=x.device)
    codes, scale = kernel.quantize(x.detach().reshape(-1, x.shape[-1]))
    return codes.reshape(x.shape), scale.reshape(*x.shape[:-1], 1)
