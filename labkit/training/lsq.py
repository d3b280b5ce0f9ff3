"""LSQ: the distance between two grid points is a weight like any other, and is learned.

Through the straight-through estimator the loss has a gradient by the scale s as well. With
v = x / s, and v̄ the code that x got (zero-point taken off):

    dx̂/ds = v̄ - v     where x was not clipped: what rounding moved it by, in steps
             v̄         where it was: the end of the grid moves along

A scale collects that from all the n values that share it, so its gradient outgrows that of a
weight. "Clipped" is meant by the code, as torch means it: a v up to half a step beyond the last
code still counts as inside; the paper, which clips before it rounds, draws the line at the code.

LSQ multiplies the scale's gradient by g = 1 / sqrt(n · qmax) to keep the two in proportion. (Adam
divides by the size of the gradient itself, and undoes g: there the scale's learning rate decides.)

Sources: Esser et al. 2020, "Learned Step Size Quantization", sections 2.1 and 2.2; the learned
zero-point is LSQ+, Bhalgat et al. 2020, in the integer form of torch's
``_fake_quantize_learnable_per_tensor_affine``: its β is -z · s.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

from labkit.core import affine
from labkit.core.errors import CalibrationError
from labkit.core.finite import require_finite
from labkit.core.granularity import block_range, from_blocks, scale_shape, to_blocks
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import clipping
from labkit.training.fake_quant import to_integers
from labkit.training.ste import inside_range, straight_through

_TINY = torch.finfo(torch.float32).tiny

Start = Literal["lsq", "minmax", "mse"]


class _LearnedFakeQuantize(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float
    ) -> Tensor:
        whole = zero_point.detach().round().clamp(qmin, qmax)
        rounded = affine.fake_quantize(x, scale, whole, qmin, qmax)
        ctx.save_for_backward(x, scale, rounded, inside_range(x, scale, whole, qmin, qmax))
        ctx.factor = factor
        return rounded.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, rounded, inside = ctx.saved_tensors
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = grad_zero = None
        if ctx.needs_input_grad[1]:
            # rounded / s is v̄; inside the range v is taken off.
            by_scale = (rounded - torch.where(inside, x.float(), 0.0)) / scale
            grad_scale = (grad * by_scale).sum(1, keepdim=True) * ctx.factor
        if ctx.needs_input_grad[2]:
            by_zero = torch.where(inside, torch.zeros_like(scale), -scale)
            grad_zero = (grad * by_zero).sum(1, keepdim=True) * ctx.factor
        return grad_x, grad_scale, grad_zero, None, None, None


def learned_fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float
) -> Tensor:
    """x [blocks, block_size] rounded to the grid, differentiable in all three tensors.

    Args:
        scale, zero_point: float32 [blocks, 1]; the zero-point is rounded on the way forward.
        factor: what the gradients of scale and zero-point are multiplied by.

    Raises:
        NonFiniteError, SchemeError: as `labkit.core.affine.quantize`.
    """
    return _LearnedFakeQuantize.apply(x, scale, zero_point, qmin, qmax, factor)


class LearnedScale(nn.Module):
    """Round to a grid whose scale (and, when asymmetric, zero-point) is learned.

    Args:
        scheme: granularity "tensor", "channel" or "group".
        shape: the shape of the scales; of a weight `scale_shape(weight.shape, scheme)`, and () for
            activations.
        elements: n of the gradient scale. Of a weight, how many share a scale; of an activation,
            its features.
        start: where the first tensor puts the scale: "lsq" 2 · mean|x| / sqrt(qmax), as the paper
            does; "minmax", clipping nothing; "mse", the clip of least squared error.
        scale_dtype: what scales are stored in, and hence rounded to while training.

    Raises:
        GroupSizeError, ShapeError: later, for a tensor that the scheme does not fit.
    """

    zero_point: Tensor
    seen: Tensor
    place: str = "LearnedScale"

    def __init__(
        self,
        scheme: QuantScheme,
        shape: tuple[int, ...] = (),
        elements: int = 1,
        *,
        start: Start = "lsq",
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.scheme, self.start, self.scale_dtype = scheme, start, scale_dtype
        self.factor = 1.0 / math.sqrt(elements * max(scheme.qmax, 1))
        self.scale = nn.Parameter(torch.ones(shape))
        if scheme.symmetric:
            self.register_buffer("zero_point", torch.zeros(shape))
        else:
            self.zero_point = nn.Parameter(torch.zeros(shape))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @classmethod
    def of_weight(cls, weight: Tensor, scheme: QuantScheme, **settings: Any) -> LearnedScale:
        """The learned scales of a weight [out, in] or [out, in, kh, kw], started from it."""
        shape = scale_shape(weight.shape, scheme)
        learned = cls(scheme, shape, weight.numel() // math.prod(shape), **settings)
        learned.initialize(weight)
        return learned

    def forward(self, x: Tensor) -> Tensor:
        """x rounded to the grid, in x's dtype. The first tensor starts the scale (in training).

        Raises:
            NonFiniteError: x, or a scale that training has ruined, is not finite.
            CalibrationError: evaluation mode before any training.
        """
        if x.numel() == 0:
            return x
        if self.training and int(self.seen) == 0:
            self.initialize(x)
        self.require_ready()
        scheme = self.scheme
        # The number as it is stored is used, the exact one is moved.
        scale = straight_through(self.scale, self._stored())
        rounded = learned_fake_quantize(
            to_blocks(x, scheme),
            scale.reshape(-1, 1),
            self.zero_point.reshape(-1, 1),
            scheme.qmin,
            scheme.qmax,
            self.factor,
        )
        return from_blocks(rounded, scheme, x.shape)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Put the scale where ``start`` says for x.

        Raises:
            NonFiniteError: x holds NaN or infinity.
            CalibrationError: an activation (scales of shape ()) that is all zeros.
        """
        low, high = block_range(x, self.scheme)
        if self.scale.ndim == 0 and bool(low == high):
            raise CalibrationError(
                f"all {x.numel()} values are {float(low):.4g}",
                where=f"{self.place}, {self.scheme}",
                remedy="Look at the layer in front: an activation without variance has no range.",
            )
        scale, zero_point = self._minmax(low, high)
        if self.start == "mse":
            clipped = clipping.clip(x, clipping.search_clip(x, self.scheme), self.scheme)
            scale, zero_point = self._minmax(*block_range(clipped, self.scheme))
        elif self.start == "lsq" and self.scheme.symmetric:
            mean = to_blocks(x.float(), self.scheme).abs().mean(1).reshape(low.shape)
            # A block of zeros keeps the 1 that it has from its range.
            scale = torch.where(mean > 0, 2 * mean / math.sqrt(self.scheme.qmax), scale)
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.zero_point.copy_(zero_point.reshape(self.scale.shape))
        self.seen.fill_(1)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero_point) as stored: float32 rounded to ``scale_dtype``, and int32.

        Raises:
            CalibrationError: never started from a tensor.
            NonFiniteError: a scale is not finite.
        """
        self.require_ready()
        scheme = self.scheme
        zero_point = self.zero_point.detach().round().clamp(scheme.qmin, scheme.qmax)
        return self._stored().detach(), zero_point.to(torch.int32)

    def require_ready(self) -> None:
        """Return if this may round. Raises as `qparams`."""
        if int(self.seen) == 0:
            raise CalibrationError(
                "a learned scale that has seen no tensor",
                where=f"{self.place}, {self.scheme}",
                remedy="Call initialize(x), or train, first.",
            )
        require_finite(self.scale.detach(), f"learned scale of {self.place}")

    @torch.no_grad()
    def quantized(self, x: Tensor) -> QuantizedTensor:
        """The integers that `forward` stands for, as they are exported. Raises as `qparams`."""
        return to_integers(x, *self.qparams(), self.scheme, self.scale_dtype)

    def _stored(self) -> Tensor:
        """The scale as it is stored, and never 0 or negative, whatever a step made of it."""
        least = max(_TINY, torch.finfo(self.scale_dtype).smallest_normal)
        return self.scale.clamp(min=least).to(self.scale_dtype).float()

    def _minmax(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return affine.choose_qparams(
            low,
            high,
            self.scheme.bits,
            self.scheme.symmetric,
            narrow_range=self.scheme.narrow_range,
        )

    def extra_repr(self) -> str:
        return f"{self.scheme}, scales {tuple(self.scale.shape)}"
