"""How the errors of rounded columns reach the columns that are left: two ways to the same numbers.

With H⁻¹ = Uᵀ U, U upper triangular, rounding column j to q_j moves the rest of the row by

    err_j = (w_j - q_j) / U_jj            w_k ← w_k - err_j U_jk   for all k > j

(Frantar et al. 2023, section 3.3). `ByInverse` does that, in the steps of the paper's code, of
AutoGPTQ and of GPTQModel. It takes three factorisations: H = L Lᵀ, H⁻¹ from L, H⁻¹ = Uᵀ U.

`BySubstitution` takes one. Let R = U⁻¹, which is upper triangular with H = R Rᵀ. Then err is

    err = (w - q) R,      the sum over k <= j of (w_k - q_k) R_kj,

with w as it was in the beginning, and the damage of the row is ‖err‖². Of the columns to come it is
known what the rounded ones put into that sum, S = Σ (w_k - q_k) R_k·; they cancel it by moving to
w + S R⁻¹, where the R of one block is inverted and never the whole. That is GPTQ by back
substitution: the same weights, a third of the arithmetic before the first column, and less lost to
rounding. See Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
Algorithm".
"""

from __future__ import annotations

from typing import Protocol, Self

import torch

from labkit.core.errors import CalibrationError

_LARGEST = 1.0
_GROWTH = 2.0
_FIRST = 1e-3
_BLOCK = 256  # LAPACK's own blocks keep half of a CPU's arithmetic idle at 4096 columns


class Repair(Protocol):
    """The weight while it is rounded block by block; columns in the order of rounding."""

    @classmethod
    def start(cls, weight: torch.Tensor, hessian: torch.Tensor) -> Self | None:
        """Factor ``hessian`` (float32 [in, in]); None if it has no factor.

        It has none where it is not positive definite, or too close to it for float32. ``weight``
        ([out, in]) is not changed, and neither is ``hessian`` below the diagonal; the diagonal and
        what is above may be overwritten.
        """

    def corrected(self, start: int, stop: int) -> torch.Tensor:
        """Return these columns, [out, stop - start], moved by all errors passed on so far."""

    def factor(self, start: int, stop: int) -> torch.Tensor:
        """Return the diagonal block of U, [stop - start, stop - start]."""

    def pass_on(self, start: int, change: torch.Tensor, errors: torch.Tensor) -> None:
        """Tell the columns behind the block that began at ``start`` how it was rounded.

        ``change`` is w - q, with w as it was in the beginning; ``errors`` is err_j: [out, block].
        """


class ByInverse:
    """The three factorisations, and the weights moved after every block."""

    def __init__(self, weight: torch.Tensor, upper: torch.Tensor) -> None:
        self._weight = weight.clone()
        self._upper = upper

    @classmethod
    def start(cls, weight: torch.Tensor, hessian: torch.Tensor) -> ByInverse | None:
        """Factor the Hessian; see `Repair`."""
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if int(failed):
            return None
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if int(failed) or not _finite(upper):
            return None
        return cls(weight, upper)

    def corrected(self, start: int, stop: int) -> torch.Tensor:
        """The columns as they are now; see `Repair`."""
        return self._weight[:, start:stop].clone()

    def factor(self, start: int, stop: int) -> torch.Tensor:
        """A block of U; see `Repair`."""
        return self._upper[start:stop, start:stop]

    def pass_on(self, start: int, change: torch.Tensor, errors: torch.Tensor) -> None:
        """Move all later columns; see `Repair`."""
        stop = start + errors.shape[1]
        self._weight[:, stop:].addmm_(errors, self._upper[start:stop, stop:], alpha=-1)


class BySubstitution:
    """One factorisation, and the sums that later columns have to cancel."""

    def __init__(self, weight: torch.Tensor, root: torch.Tensor) -> None:
        self._weight = weight
        self._root = root
        self._sums = torch.empty_like(weight)
        self._inverted: tuple[tuple[int, int], torch.Tensor] | None = None

    @classmethod
    def start(cls, weight: torch.Tensor, hessian: torch.Tensor) -> BySubstitution | None:
        """Factor the Hessian; see `Repair`."""
        root = _upper_root(hessian)
        return None if root is None else cls(weight, root)

    def corrected(self, start: int, stop: int) -> torch.Tensor:
        """The original columns, and what cancels their sums; see `Repair`."""
        if start == 0:
            return self._weight[:, :stop].clone()
        return torch.addmm(
            self._weight[:, start:stop], self._sums[:, start:stop], self.factor(start, stop)
        )

    def factor(self, start: int, stop: int) -> torch.Tensor:
        """The inverse of a block of R, which is that block of U; see `Repair`."""
        # Usually asked for twice: to correct a block, and to round it.
        if self._inverted is None or self._inverted[0] != (start, stop):
            inverse = _inverse(self._root[start:stop, start:stop])
            self._inverted = (start, stop), inverse
        return self._inverted[1]

    def pass_on(self, start: int, change: torch.Tensor, errors: torch.Tensor) -> None:
        """Add to the sums of all later columns; see `Repair`."""
        stop = start + errors.shape[1]
        later = self._sums[:, stop:]
        # The first block writes the sums, which saves setting them to zero.
        torch.addmm(
            later, change, self._root[start:stop, stop:], beta=0 if start == 0 else 1, out=later
        )


def damped(
    kind: type[Repair], weight: torch.Tensor, hessian: torch.Tensor, damp: float
) -> tuple[Repair, float, float]:
    """Start ``kind`` with H + damp · mean(diag(H)) · I; where that has no factor, double damp.

    ``hessian`` is overwritten.

    Returns:
        The repair, the damp that was used (at most 1) and what was added to the diagonal.

    Raises:
        CalibrationError: not even a damp of 1 is enough.
    """
    diagonal = hessian.diagonal().clone()
    mean = diagonal.mean()
    used = damp
    while True:
        added = used * mean
        hessian.diagonal().copy_(diagonal + added)
        repair = kind.start(weight, hessian)
        if repair is not None:
            return repair, used, float(added)
        if used >= _LARGEST:
            raise CalibrationError(
                f"H cannot be factored, not even with damp {used:g}",
                where=f"GPTQ, Hessian of shape {tuple(hessian.shape)}",
                remedy="H is a sum of x xᵀ: is it symmetric, with a diagonal that is not negative?",
            )
        used = min(max(used * _GROWTH, _FIRST), _LARGEST)
        # The failed attempt may have overwritten what is above the diagonal, and nothing below.
        hessian.copy_(hessian.tril(-1) + hessian.tril(-1).T)


def _upper_root(matrix: torch.Tensor) -> torch.Tensor | None:
    """The upper triangular R with ``matrix`` = R Rᵀ, written over it; None if there is none.

    Cholesky's factorisation from the last column to the first, block by block, so that almost all
    of the arithmetic is in matrix products. Below the diagonal nothing is changed.
    """
    size = matrix.shape[0]
    for stop in range(size, 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        # Upside down, an upper triangular root is a lower triangular one.
        flipped, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop].flip(0, 1))
        if int(failed) or not _finite(flipped):
            return None
        corner = flipped.flip(0, 1)
        matrix[start:stop, start:stop].tril_(-1).add_(corner)
        above = matrix[:start, start:stop]
        above.copy_(above @ _inverse(corner).T)
        for right in range(start, 0, -_BLOCK):
            left = max(0, right - _BLOCK)
            pair = matrix[:right, start:stop], matrix[left:right, start:stop].T
            matrix[:right, left:right].addmm_(*pair, alpha=-1)
    return matrix


def _inverse(root: torch.Tensor) -> torch.Tensor:
    """The inverse of a small upper triangular matrix."""
    identity = torch.eye(root.shape[0], device=root.device)
    return torch.linalg.solve_triangular(root, identity, upper=True)


def _finite(factor: torch.Tensor) -> bool:
    return bool(torch.isfinite(factor.diagonal()).all())
