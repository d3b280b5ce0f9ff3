"""The triangular factor that GPTQ divides errors by, and damping until it exists.

GPTQ rounds one column after the other and asks, each time, for the inverse of H restricted to the
columns that are left. All these inverses are rows of one matrix: the upper triangular U with
H⁻¹ = Uᵀ U (Frantar et al. 2023, section 3.3, step 3).

The usual way there is three factorisations: H = L Lᵀ, H⁻¹ from L, and H⁻¹ = Uᵀ U. The same U comes
out of one. Turn H upside down and factor that: P H P = K Kᵀ, where P reverses the order. Then
H = (P K P)(P K P)ᵀ with P K P upper triangular, and its inverse, P K⁻¹ P, is upper triangular and is
U. That is a third of the arithmetic, and H is never inverted, so less is lost to rounding.
"""

from __future__ import annotations

import torch

from labkit.core.errors import CalibrationError

_LARGEST = 1.0
_GROWTH = 2.0
_FIRST = 1e-3


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor | None:
    """Return U, upper triangular with H⁻¹ = Uᵀ U, in three steps as published; None if H has none.

    ``hessian`` is float32 [in, in], symmetric. This is the arithmetic of the paper's code, AutoGPTQ
    and GPTQModel, step by step, and gives their bits.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(failed) or not _finite(upper) else upper


def flipped_factor(hessian: torch.Tensor) -> torch.Tensor | None:
    """Return R, upper triangular with H = R Rᵀ, or None if H is not positive definite.

    R is the inverse of `inverse_factor`'s U, from one Cholesky factorisation.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    return None if int(failed) or not _finite(lower) else lower.flip(0, 1)


def damped_factor(hessian: torch.Tensor, damp: float) -> tuple[torch.Tensor, float, float]:
    """Return (U, damp used, what was added to the diagonal) for H + damp · mean(diag(H)) · I.

    Where H cannot be factored, damp doubles, from 0.001 at least, up to 1.

    Raises:
        CalibrationError: not even a damp of 1 is enough.
    """
    mean = hessian.diagonal().mean()
    used = damp
    while True:
        added = used * mean
        damped = hessian.clone()
        damped.diagonal().add_(added)
        factor = inverse_factor(damped)
        if factor is not None:
            return factor, used, float(added)
        if used >= _LARGEST:
            raise CalibrationError(
                f"H cannot be factored, not even with damp {used:g}",
                where=f"GPTQ, Hessian of shape {tuple(hessian.shape)}",
                remedy="H is a sum of x xᵀ: is it symmetric, with a diagonal that is not negative?",
            )
        used = min(max(used * _GROWTH, _FIRST), _LARGEST)


def _finite(factor: torch.Tensor) -> bool:
    return bool(torch.isfinite(factor.diagonal()).all())
