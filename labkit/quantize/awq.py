"""AWQ: scale the input channels that matter up before rounding, and back down on the other side.

    W x  =  (W · diag(s)) · (diag(s)^-1 x)        only W · diag(s) is rounded

A weight's error enters the output multiplied by its input, so the channels that matter are those
with large *activations*. Scaled up by s_j > 1, channel j keeps its rounding step (the step belongs
to the largest weight of a group, which is mostly another channel's) while its error is divided by
s_j on the way out. If too many channels grow, the steps grow too; hence a search. With x̄_j the mean
|x_j| and w̄_j the mean of |W_ij| / (largest |W| in its group),

    plain   s = x̄^a                 0 <= a < 1, twenty steps
    duo     s = x̄^a / w̄^(1 - a)     AutoAWQ's default: channels of small weights grow as well

each divided by sqrt(max s · min s), and the s of least output error is kept. a = 0 of the plain
form is round-to-nearest, so the search never does worse on its calibration inputs.

Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression
and Acceleration", sections 3.1 and 3.2; `duo` and the clip search from its code and AutoAWQ.
Folding s into the module before is `labkit.models.folding`; the loss over whole attention and MLP
modules `labkit.models.methods.awq`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from labkit.core.errors import CalibrationError, SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import rtn
from labkit.quantize.clipping import clip as clip_weight
from labkit.quantize.clipping import rounded, search_clip
from labkit.quantize.hessian import InputStats

Form = Literal["plain", "duo"]
FORMS: tuple[Form, ...] = ("plain", "duo")
STEPS = 20
_FLOOR = 1e-4


@dataclass(frozen=True)
class Candidate:
    """Scales [in] (float32, positive) and what made them: their form and exponent."""

    scales: Tensor
    form: Form
    ratio: float


@dataclass(frozen=True)
class ScaleSearch:
    """What a search found.

    Args:
        best: the candidate of least loss.
        loss: its mean squared output error.
        unscaled: the loss with all scales 1; None when that was not among the candidates.
        history: (form, ratio, loss) of every candidate in order; of the first round where a search
            has several.
    """

    best: Candidate
    loss: float
    unscaled: float | None
    history: tuple[tuple[Form, float, float], ...]


@dataclass(frozen=True)
class AwqSolution:
    """One matrix, quantized: `quantized` stands for weight * scales, and reads x / scales.

    Args:
        quantized: the integers of the scaled (and clipped) weight.
        search: how the scales were chosen.
        loss: mean squared error of the outputs on the calibration inputs, after clipping.
        tokens: calibration tokens seen.
    """

    quantized: QuantizedTensor
    search: ScaleSearch
    loss: float
    tokens: int

    @property
    def scales(self) -> Tensor:
        """float32 [in]: what the module before has to divide by."""
        return self.search.best.scales

    def dequantize(self) -> Tensor:
        """The weight that acts on unscaled inputs: float32 [out, in]."""
        return self.quantized.dequantize() / self.scales


def salience(stats: InputStats) -> Tensor:
    """x̄, the mean |x| of each input channel: float32 [in].

    Raises CalibrationError when no token was seen, or every input was 0.
    """
    mean = stats.mean_abs()
    if not bool((mean > 0).any()):
        raise CalibrationError(
            f"all inputs of {stats.tokens} tokens are 0",
            where="AWQ",
            remedy="No channel is more salient than another: check the layers before, or take rtn.",
        )
    return mean


def relative_weight(weights: Sequence[Tensor], scheme: QuantScheme) -> Tensor:
    """w̄ [in]: the mean over all outputs of |W| / (largest |W| in its group).

    `weights`: one or more [out_i, in] that read the same input.

    Raises ShapeError when their columns differ, NonFiniteError.
    """
    if not weights or len({w.shape[1] for w in weights}) != 1:
        raise ShapeError(
            f"weights of shapes {[tuple(w.shape) for w in weights]}",
            where="AWQ",
            remedy="Pass the weights that read one input: the same number of columns in all.",
        )
    together = torch.cat([w.detach().float() for w in weights]).abs()
    require_finite(together, "weight")
    columns = together.shape[1]
    size = scheme.group_size if scheme.granularity == "group" else columns
    groups = together.reshape(len(together), -1, size or columns)
    largest = groups.amax(dim=2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (groups / largest).reshape(len(together), columns).mean(dim=0)


def scales_for(x_mean: Tensor, w_mean: Tensor, form: Form, ratio: float) -> Candidate:
    """One candidate: `x_mean`, `w_mean` float32 [in] -> scales [in], sqrt(max · min) = 1.

    A channel that no input reaches (x̄ = 0) has no salience: its scale is 1, and it takes no part
    in the normalisation (AutoAWQ gives it 1e-4, which shifts all others).
    """
    scales = x_mean.pow(ratio)
    if form == "duo":
        scales = scales / (w_mean.pow(1 - ratio) + _FLOOR)
    scales = scales.clamp(min=_FLOOR)
    alive = x_mean > 0
    ends = scales[alive]
    scales = scales / (ends.max() * ends.min()).sqrt()
    return Candidate(torch.where(alive, scales, torch.ones_like(scales)), form, ratio)


def scale_candidates(
    x_mean: Tensor,
    weights: Sequence[Tensor],
    scheme: QuantScheme,
    *,
    steps: int = STEPS,
    forms: Sequence[Form] = FORMS,
) -> list[Candidate]:
    """All candidates: every form with `steps` exponents 0, 1/steps, … below 1.

    `x_mean` as from `salience`, `weights` the layers that read this input.

    Raises SchemeError for steps below 1 or an unknown form; ShapeError, NonFiniteError.
    """
    unknown = [form for form in forms if form not in FORMS]
    if steps < 1 or unknown or not forms:
        raise SchemeError(
            f"{steps} steps, forms {tuple(forms)}",
            where="AWQ",
            remedy=f"At least one step, and forms of {', '.join(FORMS)}.",
        )
    require_finite(x_mean, "mean of |x|")
    w_mean = relative_weight(weights, scheme)
    if x_mean.shape != w_mean.shape:
        raise ShapeError(f"{x_mean.numel()} channels of x for {w_mean.numel()} columns")
    w_mean = w_mean.to(x_mean.device)
    return [
        scales_for(x_mean, w_mean, form, step / steps) for form in forms for step in range(steps)
    ]


def output_loss(weight: Tensor, gram: Tensor, scheme: QuantScheme) -> Callable[[Tensor], float]:
    """loss(scales): mean squared error of one layer's outputs, without running it.

    With G = (1/N) Σ x xᵀ ([in, in]) and D the weight's error, the mean over tokens and outputs is
    tr(D G Dᵀ) / out: `weight` [out, in] costs one product with G, however many tokens G saw.
    """
    weight = weight.detach().float()

    def loss(scales: Tensor) -> float:
        return squared_error(rounded(weight * scales, scheme) / scales - weight, gram)

    return loss


def squared_error(error: Tensor, gram: Tensor) -> float:
    """tr(D G Dᵀ) / out: what the weight error D [out, in] costs each output, squared, in mean."""
    # Rounding may bring the trace of a rank-deficient G a little below 0.
    return max(float((error @ gram).mul_(error).sum()) / len(error), 0.0)


def choose(candidates: Sequence[Candidate], loss: Callable[[Tensor], float]) -> ScaleSearch:
    """The candidate of least loss; the first one on a tie.

    A candidate whose grid cannot be stored (a scale beyond float16) or whose loss is not finite is
    passed over.

    Raises the SchemeError of the first such candidate, or CalibrationError, when none is left.
    """
    losses, refusal = [], None
    for candidate in candidates:
        try:
            value = loss(candidate.scales)
        except SchemeError as error:
            refusal, value = refusal or error, math.inf
        losses.append(value if math.isfinite(value) else math.inf)
    at = min(range(len(losses)), key=losses.__getitem__)
    if losses[at] == math.inf:
        raise refusal or CalibrationError(
            "no candidate has a finite output error",
            where="AWQ",
            remedy="The activations are too large for float32: check the layers before.",
        )
    history = tuple((c.form, c.ratio, v) for c, v in zip(candidates, losses, strict=True))
    unscaled = [value for form, ratio, value in history if form == "plain" and ratio == 0]
    return ScaleSearch(candidates[at], losses[at], unscaled[0] if unscaled else None, history)


def search_scales(
    weight: Tensor,
    stats: InputStats,
    scheme: QuantScheme,
    *,
    steps: int = STEPS,
    forms: Sequence[Form] = FORMS,
) -> ScaleSearch:
    """The scales of least output error for one matrix [out, in] by itself.

    Raises:
        NonFiniteError: weight (or, when they were added, inputs) hold NaN or infinity.
        CalibrationError: no tokens, or inputs that are all 0.
        ShapeError, GroupSizeError, SchemeError: as `rtn.quantize`.
    """
    candidates = scale_candidates(salience(stats), [weight], scheme, steps=steps, forms=forms)
    return choose(candidates, output_loss(weight, stats.hessian() / 2, scheme))


def solve(
    weight: Tensor,
    stats: InputStats,
    scheme: QuantScheme,
    *,
    clip: bool = True,
    steps: int = STEPS,
    forms: Sequence[Form] = FORMS,
) -> AwqSolution:
    """Search scales, then clip bounds, then round: AWQ on one matrix [out, in].

    Raises as `search_scales`.
    """
    search = search_scales(weight, stats, scheme, steps=steps, forms=forms)
    scales = search.best.scales
    scaled = weight.detach().float() * scales
    gram = scaled_gram(stats.hessian() / 2, scales)
    kept = clip_weight(scaled, search_clip(scaled, scheme, gram), scheme) if clip else scaled
    quantized = rtn.quantize(kept, scheme)
    loss = squared_error(quantized.dequantize() - scaled, gram)
    return AwqSolution(quantized, search, loss, stats.tokens)


def scaled_gram(gram: Tensor, scales: Tensor) -> Tensor:
    """The Gram matrix of x / scales, from that of x: both [in, in]."""
    return gram / scales / scales[:, None]
