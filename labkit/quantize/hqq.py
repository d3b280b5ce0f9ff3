"""HQQ: half-quadratic quantization, a fit of the zero-point that needs no data.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"
(mobiusml.github.io/hqq_blog), and their package `hqq`. The scale of a group is that of
round-to-nearest, and stays. The zero-point becomes a real number, fitted so that

    sum |w - ŵ|^p,    p = 0.7

is small: with p < 1 a few large errors (outliers) weigh less than in a sum of squares. Such a sum
has no gradient to follow. So the error is split off into a variable e of its own, and two steps,
each with an exact solution, take turns:

    e    <- shrink(w - ŵ)                    what remains of the error when all small ones are cut
    zero <- mean(code - (w - e) / scale)     the best zero for the codes as they stand

β, the strength of the tie between e and the error, grows by the factor κ each turn.

With the published β = 10 shrinking cuts every error below β^(-1/(2-p)) = 0.17 to nothing. Weights
of language models are smaller than that, so on them e is 0: the zero becomes the mean of
code - w / scale, codes and zero take turns as in k-means, and neither p nor κ makes a difference.

Two departures from the package (0.2.8), so that our error is at most its error: a group keeps the
best zero that it saw (there the turn that failed to improve still counts), and κ is applied (there
it is a setting that the default solver does not read).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.core.affine import choose_qparams
from labkit.core.errors import GroupSizeError, SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.float_zero import FloatZeroTensor

_RUN = 2**17  # weights


@dataclass(frozen=True)
class HqqSolution:
    """A quantized weight, and how the fit went.

    Args:
        quantized: codes, scale and real zero.
        errors: mean |w - ŵ| over the whole weight before the first turn, after it, and so on.
    """

    quantized: FloatZeroTensor
    errors: tuple[float, ...]


def quantize(
    weight: torch.Tensor,
    bits: int = 4,
    group_size: int | None = 64,
    *,
    scale_dtype: torch.dtype = torch.float16,
    p: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
) -> FloatZeroTensor:
    """The quantized weight of `solve`, alone."""
    options = {"p": p, "beta": beta, "kappa": kappa, "iterations": iterations}
    return solve(weight, bits, group_size, scale_dtype=scale_dtype, **options).quantized


@torch.no_grad()
def solve(
    weight: torch.Tensor,
    bits: int = 4,
    group_size: int | None = 64,
    *,
    scale_dtype: torch.dtype = torch.float16,
    p: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
) -> HqqSolution:
    """Quantize ``weight`` ([out, in], floating point) to ``bits`` (1 to 8) in groups along in.

    Args:
        group_size: weights that share a scale and a zero; None for a whole row.
        scale_dtype: what scales and zeros are stored in. Both are rounded to it before codes are
            chosen, so that the codes fit what is kept.
        p, beta, kappa: the norm, the tie and its growth, as above.
        iterations: turns at most; 0 is round-to-nearest with a real zero. The fit ends when two
            turns in a row did not lower the error.

    Raises:
        NonFiniteError: the weight holds NaN or infinity.
        ShapeError: the weight is not a matrix, or empty.
        GroupSizeError: the group size does not divide in.
        SchemeError: bits or settings out of range, or a scale or zero beyond ``scale_dtype``: a
            group far from 0 and narrow has a large zero.
    """
    _require_settings(p, beta, kappa, iterations)
    groups = _groups(weight, group_size)
    lo, hi = groups.amin(-1, keepdim=True).double(), groups.amax(-1, keepdim=True).double()
    # A range [0, hi - lo]: HQQ's grid spans the group and need not hold 0.
    scale, _ = choose_qparams(
        torch.zeros_like(hi), hi - lo, bits, symmetric=False, scale_dtype=scale_dtype
    )
    step = scale.float()
    zero = (-lo / step.double()).float()
    best_zero, best_error = zero, torch.full_like(zero, torch.inf)
    errors: list[float] = []
    stalled = 0
    for _ in range(iterations + 1):
        stored = _stored_zero(zero, scale_dtype).float()
        error, zero = _turn(groups, step, stored, bits, beta, p)
        better = error < best_error
        best_zero = torch.where(better, stored, best_zero)
        best_error = torch.where(better, error, best_error)
        mean = float(error.mean())
        stalled = stalled + 1 if errors and mean >= min(errors) else 0
        errors.append(mean)
        if stalled == 2:
            break
        beta *= kappa
    codes = torch.empty_like(groups, dtype=torch.uint8)
    for rows in _runs(groups):
        codes[rows] = _codes(groups[rows], step[rows], best_zero[rows], bits).to(torch.uint8)
    quantized = FloatZeroTensor(
        codes.reshape(weight.shape),
        scale.reshape(len(weight), -1),
        best_zero.to(scale_dtype).reshape(len(weight), -1),
        bits,
        groups.shape[-1],
    )
    return HqqSolution(quantized, tuple(errors))


def _turn(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    beta: float,
    p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both steps for every group: its mean error with ``zero``, and the next zero, [groups, 1]."""
    errors, zeros = torch.empty_like(zero), torch.empty_like(zero)
    for rows in _runs(groups):
        weight, step = groups[rows], scale[rows]
        codes = _codes(weight, step, zero[rows], bits)
        residual = weight - (codes - zero[rows]) * step
        errors[rows] = residual.abs().mean(-1, keepdim=True)
        kept = shrink(residual, beta, p)
        zeros[rows] = (codes - (weight - kept) / step).mean(-1, keepdim=True)
    return errors, zeros


def _runs(groups: torch.Tensor) -> list[slice]:
    """Groups cut into runs that stay in the processor's cache through all of a turn's steps."""
    size = max(1, _RUN // groups.shape[-1])
    return [slice(start, start + size) for start in range(0, len(groups), size)]


def shrink(x: torch.Tensor, beta: float, p: float) -> torch.Tensor:
    """Move x towards 0 by |x|^(p-1) / beta, at most to 0: the solution of the first step.

    For p < 1 small values move furthest and large ones hardly at all. Lp shrinkage: Chartrand &
    Yin 2016, "Nonconvex sparse regularization and splitting algorithms".
    """
    size = x.abs()
    if float(size.max()) < 0.999 * beta ** (-1 / (2 - p)):
        return torch.zeros_like(x)  # as the formula has it, without its powers
    return torch.sign(x) * (size - size.pow(p - 1) / beta).clamp(min=0)


def _codes(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> torch.Tensor:
    return torch.round(groups / scale + zero).clamp_(0, 2**bits - 1)


def _groups(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """The weight as float32 [groups, group_size], row by row, checked."""
    if not weight.is_floating_point():
        raise SchemeError(f"the weight is {weight.dtype}", remedy="Quantize real numbers.")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ShapeError(
            f"a weight of shape {tuple(weight.shape)}", where="HQQ", remedy="Expected [out, in]."
        )
    require_finite(weight, "weight")
    size = weight.shape[1] if group_size is None else group_size
    if size < 1 or weight.shape[1] % size:
        raise GroupSizeError(
            f"group size {size} does not divide {weight.shape[1]} input columns", where="HQQ"
        )
    return weight.detach().float().reshape(-1, size)


def _stored_zero(zero: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    stored = zero.to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise SchemeError(
            f"a zero of {float(zero.abs().max()):.4g} is beyond {dtype}",
            where="HQQ",
            remedy="A group far from 0 is too narrow: keep scales and zeros in float32"
            " (scale_dtype=torch.float32).",
        )
    return stored


def _require_settings(p: float, beta: float, kappa: float, iterations: int) -> None:
    if not (0 < p <= 1 and beta > 0 and kappa >= 1 and iterations >= 0):
        raise SchemeError(
            f"p {p}, beta {beta}, kappa {kappa}, {iterations} iterations",
            where="HQQ",
            remedy="Needed: 0 < p <= 1, beta > 0, kappa >= 1, iterations >= 0.",
        )
