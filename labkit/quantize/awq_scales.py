"""The scales that AWQ chooses from: made of how loud the inputs are, and how small the weights.

`awq.py` says what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from labkit.core.errors import CalibrationError, SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.granularity import from_blocks, to_blocks
from labkit.core.scheme import QuantScheme
from labkit.quantize.hessian import InputStats

Form = Literal["plain", "duo"]
FORMS: tuple[Form, ...] = ("plain", "duo")
STEPS = 20
_FLOOR = 1e-4


@dataclass(frozen=True)
class Candidate:
    """Scales [in] (float32, positive) and the exponents that made them."""

    scales: Tensor
    alpha: float
    beta: float

    @property
    def neutral(self) -> bool:
        """Whether it scales nothing."""
        return self.alpha == 0 and self.beta == 0


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

    Raises ShapeError when their columns differ, GroupSizeError, NonFiniteError.
    """
    if not weights or len({w.shape[1] for w in weights}) != 1:
        raise ShapeError(
            f"weights of shapes {[tuple(w.shape) for w in weights]}",
            where="AWQ",
            remedy="Pass the weights that read one input: the same number of columns in all.",
        )
    together = torch.cat([w.detach().float() for w in weights]).abs()
    require_finite(together, "weight")
    groups = to_blocks(together, scheme)
    largest = groups.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return from_blocks(groups / largest, scheme, together.shape).mean(dim=0)


class ScaleSpace:
    """All the scales that a search may choose from, for the layers that read one input.

    Args:
        x_mean: float32 [in], as from `salience`.
        weights: one or more [out_i, in].
        scheme: says which weights share a step.

    Raises ShapeError, GroupSizeError, NonFiniteError.
    """

    def __init__(self, x_mean: Tensor, weights: Sequence[Tensor], scheme: QuantScheme) -> None:
        require_finite(x_mean, "mean of |x|")
        w_mean = relative_weight(weights, scheme)
        if x_mean.shape != w_mean.shape:
            raise ShapeError(f"{x_mean.numel()} channels of x for {w_mean.numel()} columns")
        self.x_mean, self.w_mean = x_mean.float(), w_mean.to(x_mean.device)

    def candidate(self, alpha: float, beta: float = 0.0) -> Candidate:
        """The scales x̄^a / w̄^b, with sqrt(max · min) = 1.

        A channel that no input reaches (x̄ = 0) has no salience: its scale is 1, and it takes no
        part in the normalisation. (AutoAWQ gives it 1e-4, which shifts all the others.)
        """
        scales = self.x_mean.pow(alpha)
        if beta:
            scales = scales / (self.w_mean.pow(beta) + _FLOOR)
        scales = scales.clamp(min=_FLOOR)
        alive = self.x_mean > 0
        ends = scales[alive]
        scales = scales / (ends.max() * ends.min()).sqrt()
        return Candidate(torch.where(alive, scales, torch.ones_like(scales)), alpha, beta)

    def grid(self, steps: int = STEPS, forms: Sequence[Form] = FORMS) -> list[Candidate]:
        """For each form the exponents a = 0, 1/steps, … below 1.

        Raises SchemeError for less than one step, or a form that there is not.
        """
        if steps < 1 or not forms or any(form not in FORMS for form in forms):
            raise SchemeError(
                f"{steps} steps, forms {tuple(forms)}",
                where="AWQ",
                remedy=f"At least one step, and forms of {', '.join(FORMS)}.",
            )
        alphas = [step / steps for step in range(steps)]
        betas = {"plain": lambda alpha: 0.0, "duo": lambda alpha: 1 - alpha}
        return [self.candidate(alpha, betas[form](alpha)) for form in forms for alpha in alphas]

    def neighbours(self, of: Candidate, distance: float) -> list[Candidate]:
        """The candidates `distance` away from `of` in one exponent, both kept at 0 or above."""
        steps = ((distance, 0.0), (-distance, 0.0), (0.0, distance), (0.0, -distance))
        exponents = [(of.alpha + a, of.beta + b) for a, b in steps]
        return [self.candidate(a, b) for a, b in exponents if a >= 0 and b >= 0]
