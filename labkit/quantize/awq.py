"""AWQ: scale the input channels that matter up before rounding, and back down on the other side.

    W x  =  (W · diag(s)) · (diag(s)^-1 x)        only W · diag(s) is rounded

A weight's error enters the output multiplied by its input, so the channels that matter are those
with large *activations*. Scaled up by s_j > 1, channel j keeps its rounding step (the step belongs
to the largest weight of a group, which is mostly another channel's) while its error is divided by
s_j on the way out. If too many channels grow, the steps grow too; hence a search. With x̄_j the mean
|x_j| and w̄_j the mean of |W_ij| / (largest |W| in its group),

    s = x̄^a / w̄^b        divided by sqrt(max s · min s), which changes no rounding

Twenty exponents a below 1 are tried with b = 0, the paper's form ("plain"), and with b = 1 - a,
AutoAWQ's ("duo": channels of small weights grow as well); then the neighbours of the best. The s of
least output error is kept. a = b = 0 is round-to-nearest, so that no search does worse than it on
its own calibration inputs.

Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression
and Acceleration", sections 3.1 and 3.2; `duo` and the clip search from its code and AutoAWQ.
Folding s into the module before is `labkit.models.folding`; the loss over whole attention and MLP
modules `labkit.models.methods.awq`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from labkit.core.errors import CalibrationError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import rtn
from labkit.quantize.awq_scales import FORMS, STEPS, Candidate, Form, ScaleSpace, salience
from labkit.quantize.clipping import clip as clip_weight
from labkit.quantize.clipping import rounded, search_clip
from labkit.quantize.hessian import InputStats

DISTANCES = (0.05, 0.05, 0.025, 0.025, 0.0125)
"""How far the neighbours lie that are tried after the grid, in one exponent."""


@dataclass(frozen=True)
class ScaleSearch:
    """What a search found.

    Args:
        best: the candidate of least loss.
        loss: its mean squared output error.
        unscaled: the loss with all scales 1, on the same tokens; None when it was not tried.
        history: (a, b, loss) of the candidates, of the first round where a search has several.
    """

    best: Candidate
    loss: float
    unscaled: float | None
    history: tuple[tuple[float, float, float], ...]


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
    losses, refusals = [], []
    for candidate in candidates:
        value, refusal = _measured(loss, candidate)
        losses.append(value)
        refusals += [refusal] if refusal else []
    at = min(range(len(losses)), key=losses.__getitem__)
    if losses[at] == math.inf:
        raise (
            refusals[0]
            if refusals
            else CalibrationError(
                "no candidate has a finite output error",
                where="AWQ",
                remedy="The activations are too large for float32: check the layers before.",
            )
        )
    tried = list(zip(candidates, losses, strict=True))
    unscaled = next((value for candidate, value in tried if candidate.neutral), None)
    history = tuple((candidate.alpha, candidate.beta, value) for candidate, value in tried)
    return ScaleSearch(candidates[at], losses[at], unscaled, history)


def refine(
    space: ScaleSpace,
    found: ScaleSearch,
    loss: Callable[[Tensor], float],
    distances: Sequence[float] = DISTANCES,
) -> ScaleSearch:
    """Go to a better neighbour, at most once for each distance: never worse than `found`."""
    for distance in distances:
        near = space.neighbours(found.best, distance)
        losses = [_measured(loss, candidate)[0] for candidate in near]
        if min(losses) < found.loss:
            found = replace(found, best=near[losses.index(min(losses))], loss=min(losses))
    return found


def _measured(
    loss: Callable[[Tensor], float], candidate: Candidate
) -> tuple[float, SchemeError | None]:
    """The candidate's loss; infinite where it is not finite, or where the grid cannot be stored."""
    try:
        value = loss(candidate.scales)
    except SchemeError as error:
        return math.inf, error
    return value if math.isfinite(value) else math.inf, None


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
    space = ScaleSpace(salience(stats), [weight], scheme)
    loss = output_loss(weight, stats.hessian() / 2, scheme)
    return refine(space, choose(space.grid(steps, forms), loss), loss)


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
