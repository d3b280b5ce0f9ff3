"""The straight-through estimator: round on the way forward, pretend on the way back.

round() is a staircase: its derivative is 0 wherever it exists, and nothing could be learned
through it. The estimator takes the derivative of the line that the staircase follows, which is 1.
Clipping keeps its true derivative: a value beyond the grid does not move its code, so it gets 0.

    forward    x̂ = (clamp(round(x / s) + z, qmin, qmax) - z) * s
    backward   dx̂/dx = 1 where qmin <= round(x / s) + z <= qmax, else 0

Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for
Conditional Computation"; Jacob et al. 2018, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from labkit.core import affine


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value`` on the way forward, x on the way back; both of one shape and dtype."""
    return _StraightThrough.apply(x, value.detach())


def round_through(x: Tensor) -> Tensor:
    """round(x), half to even, with gradient 1 everywhere."""
    return straight_through(x, torch.round(x))


def inside_range(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Where x (any float) has a code of its own, not a clipped one: bool of x's shape."""
    codes = torch.div(x.float(), scale).round_().add_(zero_point)
    return (codes >= qmin) & (codes <= qmax)


class _FakeQuantize(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(inside_range(x, scale, zero_point, qmin, qmax))
        return affine.fake_quantize(x, scale, zero_point, qmin, qmax).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """x rounded to the grid, in x's dtype; the gradient passes where x was not clipped.

    The same numbers as `labkit.core.affine.fake_quantize`, of which this is the trainable form.
    ``scale`` (float32) and ``zero_point`` (int32) broadcast against x and get no gradient.

    Raises:
        NonFiniteError, SchemeError: as `labkit.core.affine.quantize`.
    """
    return _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)
