"""SmoothQuant: move the loudness of an input channel from the activations into the weights.

For any s > 0, one number for each input channel,

    x @ w.T = (x / s) @ (w * s).T

and x / s costs nothing where the op before the layer is a norm: its gain is divided instead (the
fold is `labkit.models.folding`). s balances the two sides:

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)

alpha = 1 makes all channels of x equally loud and leaves the whole problem to the weights;
alpha = 0 makes the columns of w equal and does x no good; at 1/2 both sides of a channel have the
same maximum, sqrt(max|x_j| max|w_j|). Source: Xiao et al. 2023, "SmoothQuant: Accurate and
Efficient Post-Training Quantization for Large Language Models", equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme
from labkit.quantize import rtn
from labkit.quantize.activation import Dynamic
from labkit.quantize.int8_matmul import linear as integer_linear

ALPHA = 0.5
ALPHAS = tuple(step / 20 for step in range(21))
W8 = QuantScheme(8, symmetric=True, granularity="channel")
A8_TENSOR = QuantScheme(8, symmetric=True, granularity="tensor")
A8_TOKEN = QuantScheme(8, symmetric=True, granularity="token")


def column_maxima(weights: Sequence[Tensor]) -> Tensor:
    """max|w_j| over all weights [out_i, in] that read the same input: float32 [in].

    Raises ShapeError when there is none, or their columns differ; NonFiniteError.
    """
    if not weights or len({weight.shape[-1] for weight in weights}) != 1:
        raise ShapeError(
            f"weights of shapes {[tuple(weight.shape) for weight in weights]}",
            where="SmoothQuant",
            remedy="Pass the weights that read one input: the same number of columns in all.",
        )
    for weight in weights:
        require_finite(weight, "weight")
    return torch.stack([w.detach().float().abs().amax(dim=0) for w in weights]).amax(dim=0)


def smoothing_scales(x_max: Tensor, w_max: Tensor, alpha: float = ALPHA) -> Tensor:
    """s [in], float32, from the maxima of every input channel in x and in the weights, [in] each.

    A channel that is all zero on either side has nothing to balance, and gets s = 1.

    Raises:
        SchemeError: alpha outside [0, 1].
        ShapeError: maxima of different lengths.
        NonFiniteError: maxima that are NaN or infinite.
    """
    if not 0.0 <= alpha <= 1.0:
        raise SchemeError(
            f"alpha {alpha}", where="SmoothQuant", remedy="Choose 0 to 1; the paper uses 0.5."
        )
    if x_max.shape != w_max.shape or x_max.ndim != 1:
        raise ShapeError(
            f"maxima of shapes {tuple(x_max.shape)} and {tuple(w_max.shape)}",
            where="SmoothQuant",
            remedy="Both have one element for each input channel.",
        )
    require_finite(x_max, "maxima of the activations")
    require_finite(w_max, "maxima of the weights")
    # In float64: the quotient of two float32 numbers near the ends of their range overflows.
    x, w = x_max.abs().to(torch.float64), w_max.abs().to(torch.float64)
    scales = x.pow(alpha) / w.pow(1.0 - alpha)
    return torch.where((x == 0) | (w == 0), torch.ones_like(scales), scales).to(torch.float32)


def smooth(x: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """(x / s, weight * s): another pair [tokens, in], [out, in] with the same product.

    Raises SchemeError for a scale that is not positive and finite, ShapeError.
    """
    if scales.shape != weight.shape[-1:] or x.shape[-1:] != scales.shape:
        raise ShapeError(
            f"scales {tuple(scales.shape)} for x {tuple(x.shape)}, weight {tuple(weight.shape)}",
            where="SmoothQuant",
            remedy="One scale for each input channel, the last axis of both.",
        )
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise SchemeError("scales must be positive and finite", where="SmoothQuant")
    return x / scales, weight * scales


@dataclass(frozen=True)
class AlphaSearch:
    """What `search_alpha` found. Errors are of the outputs, relative: |y - y'|² / |y|².

    alphas, errors: one of each for every candidate; unsmoothed: the error with s = 1;
    best: the alpha of the least error.
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...]
    unsmoothed: float

    @property
    def best(self) -> float:
        return self.alphas[self.errors.index(min(self.errors))]


def search_alpha(
    x: Tensor,
    weights: Sequence[Tensor],
    activation: QuantScheme = A8_TENSOR,
    weight_scheme: QuantScheme = W8,
    alphas: Sequence[float] = ALPHAS,
) -> AlphaSearch:
    """Try every alpha on the inputs x [tokens, in] of weights [out_i, in] that share them.

    The error is that of the integer product, W8A8 by default, summed over the weights.

    Raises SchemeError for no alphas or one outside [0, 1], and what the parts raise.
    """
    if not alphas:
        raise SchemeError("no alphas to try", where="SmoothQuant")
    x = x.detach().float()
    x_max, w_max = x.abs().amax(dim=0), column_maxima(weights)
    targets = [x @ weight.detach().float().T for weight in weights]
    power = sum(float(y.double().square().sum()) for y in targets)

    def error(scales: Tensor) -> float:
        q_x = Dynamic(activation)(x / scales)
        noise = 0.0
        for weight, y in zip(weights, targets, strict=True):
            q_w = rtn.quantize(weight.float() * scales, weight_scheme, scale_dtype=torch.float32)
            noise += float((y - integer_linear(q_x, q_w)).double().square().sum())
        return noise / power if power else 0.0  # a silent input: nothing to get wrong

    errors = tuple(error(smoothing_scales(x_max, w_max, alpha)) for alpha in alphas)
    return AlphaSearch(tuple(alphas), errors, error(torch.ones_like(x_max)))
