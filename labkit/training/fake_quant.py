"""FakeQuant: round a tensor to its grid while training, with a range that is watched, not learned.

A *weight*'s range is that of the tensor at hand ("current"): it changes with every step. So is
that of an activation quantized token by token. A *static* activation keeps a moving average of
what training shows it ("moving"), because at run time nothing is measured any more.

    observing   the range follows the data (a moving one in training mode alone)
    frozen      the range stays; only the weights still learn (Jacob et al. 2018, section 3.1)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from labkit.core import affine
from labkit.core.errors import CalibrationError, SchemeError
from labkit.core.granularity import block_range, from_blocks, to_blocks
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.training import ste

Ranges = Literal["current", "moving"]


class FakeQuant(nn.Module):
    """Round to the grid of ``scheme``; the gradient is the straight-through estimator's.

    Args:
        scheme: any granularity; "moving" takes "tensor" alone, for how many tokens will come is
            not known beforehand.
        ranges: "current" or "moving", as above.
        momentum: weight of the past in a moving range (`labkit.core.observers.EMAObserver`).
        scale_dtype: what scales are stored in. They are rounded to it while training too, so that
            the exported integers are those that were trained. float16 is what GPTQ files hold.

    Raises:
        SchemeError: a moving range of another granularity than "tensor".
    """

    lo: Tensor
    hi: Tensor
    seen: Tensor
    frozen: Tensor
    place: str = "FakeQuant"

    def __init__(
        self,
        scheme: QuantScheme,
        ranges: Ranges = "current",
        *,
        momentum: float = 0.9,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if ranges == "moving" and scheme.granularity != "tensor":
            raise SchemeError(
                f"a moving range by {scheme.granularity}",
                where=f"FakeQuant, {scheme}",
                remedy='Use granularity "tensor", or ranges="current".',
            )
        self.scheme, self.ranges, self.momentum = scheme, ranges, momentum
        self.scale_dtype = scale_dtype
        self.register_buffer("frozen", torch.tensor(False))
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """x [any shape that the scheme fits] rounded to the grid, in x's dtype.

        Raises:
            NonFiniteError: x holds NaN or infinity.
            CalibrationError: evaluation mode, and a moving range that has seen nothing.
        """
        if x.numel() == 0:
            return x
        self._observe(x)
        return fake_quantize_blocks(x, *self.qparams(), self.scheme)

    @torch.no_grad()
    def quantized(self, x: Tensor) -> QuantizedTensor:
        """The integers that `forward` stands for, as they are exported.

        Raises:
            CalibrationError: nothing was ever observed, or one value alone (`qparams`).
            NonFiniteError: x holds NaN or infinity.
        """
        if self.ranges == "current" and not self.frozen:
            self._observe(x)
        self.require_ready()
        return to_integers(x, *self.qparams(), self.scheme, self.scale_dtype)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """(scale, zero_point), float32 and int32 in the shape of scales, of the range as it is.

        Raises:
            CalibrationError: nothing was observed.
        """
        if int(self.seen) == 0:
            raise CalibrationError(
                "an observer that has seen nothing has no range",
                where=f"{self.place}, {self.scheme}",
                remedy="Train, or run the model in training mode on calibration data, first.",
            )
        scheme = self.scheme
        scale, zero_point = affine.choose_qparams(
            self.lo,
            self.hi,
            scheme.bits,
            scheme.symmetric,
            narrow_range=scheme.narrow_range,
            scale_dtype=self.scale_dtype,
        )
        return scale.float(), zero_point

    def require_ready(self) -> None:
        """Return if this may be exported.

        Raises:
            CalibrationError: nothing was observed, or a moving range that saw one value alone: the
                layer in front is dead, or the data was all the same.
        """
        self.qparams()
        if self.ranges == "moving" and bool(self.lo == self.hi):
            raise CalibrationError(
                f"all {int(self.seen)} batches held the one value {float(self.lo):.4g}",
                where=f"{self.place}, {self.scheme}",
                remedy="Look at the layer in front: an activation without variance has no range.",
            )

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Start from a range in the shape of scales: that of any `labkit.core.observers`, say."""
        shape = () if self.ranges == "moving" else lo.shape
        self.lo, self.hi = (bound.detach().float().reshape(shape).clone() for bound in (lo, hi))
        self.seen = torch.ones_like(self.seen)

    def freeze(self, frozen: bool = True) -> None:
        """Keep the range from now on. One by token is never frozen: it is made on the spot."""
        self.frozen.fill_(frozen and self.scheme.granularity != "token")

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if self.frozen or (self.ranges == "moving" and not self.training):
            return
        lo, hi = block_range(x.detach(), self.scheme)
        if self.ranges == "current":
            self.lo, self.hi = lo.float(), hi.float()
        else:
            # One number whatever the shape of x: batches may differ in their axes.
            weight = 0.0 if int(self.seen) == 0 else self.momentum
            self.lo = weight * self.lo + (1 - weight) * lo.float().reshape(())
            self.hi = weight * self.hi + (1 - weight) * hi.float().reshape(())
        self.seen += 1

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The shape of a range is known once a tensor has been seen, here or where it was saved.
        for name in ("lo", "hi"):
            if f"{prefix}{name}" in state:
                setattr(self, name, torch.zeros_like(state[f"{prefix}{name}"]))
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.scheme}, {self.ranges}{', frozen' if self.frozen else ''}"


def fake_quantize_blocks(
    x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme
) -> Tensor:
    """`ste.fake_quantize` with a scale for each block of ``scheme``; differentiable in x."""
    blocks = to_blocks(x, scheme)
    rounded = ste.fake_quantize(
        blocks, scale.reshape(-1, 1), zero_point.reshape(-1, 1), scheme.qmin, scheme.qmax
    )
    return from_blocks(rounded, scheme, x.shape)


def to_integers(
    x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme, scale_dtype: torch.dtype
) -> QuantizedTensor:
    """The codes of x for a scale and zero-point of each block, which may have other axes than x."""
    blocks = to_blocks(x.detach(), scheme)
    rows = (scale.reshape(-1, 1), zero_point.reshape(-1, 1))
    codes = affine.quantize(blocks, *rows, scheme.qmin, scheme.qmax)
    shape = scale.shape if scale.ndim == x.ndim else (1,) * x.ndim
    return QuantizedTensor(
        from_blocks(codes.to(scheme.code_dtype), scheme, x.shape),
        scale.reshape(shape).to(scale_dtype),
        None if scheme.symmetric else zero_point.reshape(shape),
        scheme,
    )
