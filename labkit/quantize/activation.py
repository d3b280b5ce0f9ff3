"""Activations become integers while the model runs, by a range that is frozen or made on the spot.

    static    one scale for the whole tensor, read from calibration data once. Free at run time; a
              value beyond the calibrated range is clipped.
    dynamic   the scale of the very tensor at hand: one for all of it, or one for each token. Costs
              a pass over the tensor for its maximum; nothing is ever clipped.

A weight has a scale per output channel because that scale leaves the sum of a matrix product. The
scales of activations that leave it are those per tensor and per token; one per channel (an input
feature) stays inside, which is why a loud channel is a problem at all.

Both quantizers are called with x [..., features], floating point, and return a QuantizedTensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from labkit.core.affine import choose_qparams
from labkit.core.affine import quantize as quantize_affine
from labkit.core.errors import SchemeError
from labkit.core.granularity import block_range
from labkit.core.observers import MinMaxObserver, Observer
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor


class ActivationQuantizer(Protocol):
    """What both kinds are: x [..., features] in, integers out."""

    def __call__(self, x: Tensor) -> QuantizedTensor: ...


@dataclass(frozen=True)
class Dynamic:
    """The range of the tensor at hand, for all of it or for each token (`scheme.granularity`).

    Raises SchemeError for a granularity other than "tensor" or "token". A call raises
    NonFiniteError for NaN or infinity, ShapeError for a tensor without elements.
    """

    scheme: QuantScheme

    def __post_init__(self) -> None:
        _require_leaves_the_sum(self.scheme, ("tensor", "token"))

    def __call__(self, x: Tensor) -> QuantizedTensor:
        low, high = block_range(x.detach(), self.scheme)
        scheme = self.scheme
        scale, zero_point = choose_qparams(
            low, high, scheme.bits, scheme.symmetric, narrow_range=scheme.narrow_range
        )
        return _codes(x, scale, zero_point, self.scheme)


@dataclass(frozen=True, eq=False)
class Static:
    """One scale and zero-point for every tensor to come; values beyond the range are clipped.

    Args:
        scheme: granularity "tensor": how many tokens will come is not known beforehand.
        scale, zero_point: tensors of one element; the zero-point is 0 where symmetric.

    Raises SchemeError for another granularity. A call raises NonFiniteError.
    """

    scheme: QuantScheme
    scale: Tensor
    zero_point: Tensor

    def __post_init__(self) -> None:
        _require_leaves_the_sum(self.scheme, ("tensor",))

    def __call__(self, x: Tensor) -> QuantizedTensor:
        shape = (1,) * x.ndim
        return _codes(x, self.scale.reshape(shape), self.zero_point.reshape(shape), self.scheme)


def calibrated(
    batches: Iterable[Tensor], scheme: QuantScheme, observer: Observer | None = None
) -> Static:
    """The static quantizer for what `batches` (any shapes) show.

    `observer` chooses the range; min-max if not given, which clips nothing of what it saw.

    Raises CalibrationError when there was no data, NonFiniteError, SchemeError as `Static`.
    """
    observer = observer or MinMaxObserver()
    for batch in batches:
        observer.observe(batch)
    low, high = observer.range(scheme.bits, scheme.symmetric)
    scale, zero_point = choose_qparams(
        low, high, scheme.bits, scheme.symmetric, narrow_range=scheme.narrow_range
    )
    return Static(scheme, scale, zero_point)


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> QuantizedTensor:
    scale, zero_point = scale.to(x.device), zero_point.to(x.device)
    codes = quantize_affine(x.detach(), scale, zero_point, scheme.qmin, scheme.qmax)
    return QuantizedTensor(
        codes.to(scheme.code_dtype), scale, None if scheme.symmetric else zero_point, scheme
    )


def _require_leaves_the_sum(scheme: QuantScheme, allowed: tuple[str, ...]) -> None:
    if scheme.granularity not in allowed:
        raise SchemeError(
            f"granularity {scheme.granularity!r} for activations",
            remedy=f"Choose {' or '.join(allowed)}: other scales cannot leave the sum of a "
            "matrix product, or are not known before the tokens come.",
        )


def levels_used(quantized: QuantizedTensor) -> Tensor:
    """How many different codes each feature uses: int64 [features], from codes [..., features].

    255 is what 8 bits offer (symmetric, narrow range). A quiet channel that shares its scale with
    a loud one uses a handful.
    """
    codes = quantized.codes.flatten(0, -2).to(torch.int64)
    ordered = codes.sort(dim=0).values
    return 1 + (ordered[1:] != ordered[:-1]).sum(dim=0)
