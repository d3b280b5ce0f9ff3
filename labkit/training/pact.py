"""PACT: the value at which an activation is clipped is learned.

    y = clamp(x, 0, alpha), then rounded to 2^bits - 1 steps of alpha / (2^bits - 1)
    dy/dalpha = 1 where x >= alpha, else 0            dy/dx = 1 where 0 < x < alpha, else 0

A large alpha clips nothing and rounds coarsely, a small one the other way round; the loss decides.
It only ever sees the clipped values, which pull alpha towards them, so PACT adds a penalty on
alpha². PACT replaces a ReLU; for inputs of both signs (a symmetric scheme) the range here is
[-alpha, alpha], and dy/dalpha is -1 below it.

Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from labkit.core import affine
from labkit.core.errors import CalibrationError, SchemeError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.training.fake_quant import to_integers

_LEAST = 1e-6  # an alpha that a step drove to 0 or below would leave no range at all


class _LearnedClip(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, low: Tensor, scale: Tensor, scheme: QuantScheme
    ) -> Tensor:
        ctx.save_for_backward(x, alpha, low)
        return affine.fake_quantize(x, scale, 0, scheme.qmin, scheme.qmax).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, low = ctx.saved_tensors
        above = x >= alpha
        # Clipped at 0 the bound does not move with alpha; clipped at -alpha it does, downwards.
        below = (x <= low) & (low < 0)
        by_alpha = (grad * (above.to(grad.dtype) - below.to(grad.dtype))).sum().reshape(())
        return grad * ((x > low) & ~above), by_alpha, None, None, None


class LearnedClip(nn.Module):
    """Clip at a learned alpha, then round to ``scheme``; in the place of a ReLU if asymmetric.

    Args:
        scheme: granularity "tensor"; asymmetric for [0, alpha], symmetric for [-alpha, alpha].
        alpha: where alpha starts; the paper starts it high. None for the largest |x| of the first
            tensor that is seen in training, where nothing is clipped yet.

    Raises:
        SchemeError: another granularity, or an alpha that is not positive.
    """

    seen: Tensor
    place: str = "LearnedClip"

    def __init__(self, scheme: QuantScheme, alpha: float | None = 6.0) -> None:
        super().__init__()
        if scheme.granularity != "tensor" or (alpha is not None and not alpha > 0):
            raise SchemeError(
                f"alpha {alpha} in {scheme}",
                where="LearnedClip",
                remedy='One positive bound for the whole tensor: granularity "tensor".',
            )
        self.scheme = scheme
        self.alpha = nn.Parameter(torch.tensor(1.0 if alpha is None else float(alpha)))
        self.register_buffer("seen", torch.tensor(int(alpha is not None)))

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, clipped and rounded, in x's dtype. The first may start alpha.

        Raises:
            NonFiniteError: x, or an alpha that training has ruined, is not finite.
            CalibrationError, SchemeError: as `initialize`; evaluation mode before any training.
        """
        if x.numel() == 0:
            return x
        if self.training and int(self.seen) == 0:
            self.initialize(x)
        scale, _ = self.qparams()
        bound = self._bound()
        low = -bound if self.scheme.symmetric else torch.zeros_like(bound)
        return _LearnedClip.apply(x, self.alpha.clamp(min=_LEAST), low, scale, self.scheme)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Put alpha at the largest |x|.

        Raises:
            NonFiniteError: x holds NaN or infinity.
            CalibrationError: x is all zeros.
            SchemeError: values below 0, which an asymmetric clip would all make 0.
        """
        require_finite(x, self.place)
        lowest, highest = (float(end) for end in torch.aminmax(x.detach()))
        if not self.scheme.symmetric and lowest < 0:
            raise SchemeError(
                f"values down to {lowest:.4g}, and the clip is [0, alpha]",
                where=f"{self.place}, {self.scheme}",
                remedy="Only what comes out of a ReLU has no sign: choose a symmetric scheme.",
            )
        reach = max(-lowest, highest)
        if reach == 0:
            raise CalibrationError(
                f"all {x.numel()} values are 0",
                where=f"{self.place}, {self.scheme}",
                remedy="Look at the layer in front: an activation without variance has no range.",
            )
        self.alpha.fill_(reach)
        self.seen.fill_(1)

    def penalty(self) -> Tensor:
        """alpha², for the loss, with a small factor (in the paper that of the weight decay)."""
        return self.alpha.square()

    def qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero_point), float32 and int32 without axes.

        Raises:
            CalibrationError: alpha has not started.
            NonFiniteError: alpha is not finite.
        """
        if int(self.seen) == 0:
            raise CalibrationError(
                "a learned clip that has seen no tensor",
                where=f"{self.place}, {self.scheme}",
                remedy="Call initialize(x), or train, first.",
            )
        bound = self._bound()
        require_finite(bound, "learned clip")
        low = -bound if self.scheme.symmetric else torch.zeros_like(bound)
        scheme = self.scheme
        return affine.choose_qparams(
            low, bound, scheme.bits, scheme.symmetric, narrow_range=scheme.narrow_range
        )

    @torch.no_grad()
    def quantized(self, x: Tensor) -> QuantizedTensor:
        """The integers that `forward` stands for. Raises as `forward`."""
        return to_integers(x, *self.qparams(), self.scheme, torch.float32)

    def require_ready(self) -> None:
        """Return if this may round. Raises as `qparams`."""
        self.qparams()

    def _bound(self) -> Tensor:
        return self.alpha.detach().clamp(min=_LEAST)

    def extra_repr(self) -> str:
        return f"{self.scheme}, alpha={float(self.alpha.detach()):.4g}"
