"""Rotation: spread a loud channel over all channels, by an orthogonal matrix that cancels out.

For any orthogonal Q (Q Qᵀ = 1), x @ w.T = (x Q) @ (w Q).T. Each column of x Q is a mixture of all
channels. With a Hadamard matrix, whose entries are all +-1/sqrt(n), a channel that is 100 times
louder than the rest becomes 100/sqrt(n) in every channel: the histogram turns bell-shaped, and no
channel sets the step for the others.

Random signs in front of the Hadamard matrix keep a vector that happens to be one of its rows from
being gathered into a single channel. Sources: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit
Inference in Rotated LLMs"; Liu et al. 2024, "SpinQuant"; for incoherence, Chee et al. 2023, "QuIP".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.finite import require_finite

TOLERANCE = 1e-4


def hadamard(n: int) -> Tensor:
    """Sylvester's Hadamard matrix over sqrt(n), orthogonal and symmetric: float64 [n, n].

    Raises SchemeError unless n is a power of two.
    """
    if n < 1 or n & (n - 1):
        raise SchemeError(
            f"no Sylvester Hadamard matrix of size {n}",
            remedy="Use a power of two, or random_hadamard, which makes up the odd factor.",
        )
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat(
            [torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)]
        )
    return matrix / math.sqrt(n)


def random_orthogonal(n: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix, all equally likely (Haar): float64 [n, n].

    Raises SchemeError for n < 1.
    """
    _require_size(n)
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    # QR leaves the signs of r's diagonal to the algorithm; fixing them makes q unique, and Haar.
    return q * torch.sign(torch.diagonal(r))


def random_hadamard(n: int, seed: int = 0) -> Tensor:
    """Random signs, then Hadamard: float64 [n, n], orthogonal.

    Where n = 2^k m with m odd and above 1, the Kronecker product of a Hadamard matrix of size 2^k
    and a random orthogonal one of size m. Its entries are not all alike, but it spreads as well.

    Raises SchemeError for n < 1.
    """
    _require_size(n)
    power = n & -n
    matrix = hadamard(power)
    if power < n:
        matrix = torch.kron(matrix, random_orthogonal(n // power, seed).contiguous())
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n, 1), generator=generator).to(torch.float64) * 2 - 1
    return signs * matrix


def fast_hadamard(x: Tensor) -> Tensor:
    """x @ hadamard(n) for x [..., n] in n log2 n additions, in x's dtype; a new tensor.

    This is what a kernel runs where a rotation cannot be folded into a weight.

    Raises SchemeError unless n is a power of two.
    """
    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise SchemeError(f"{n} columns: not a power of two", where="fast Hadamard transform")
    y, half = x, 1
    while half < n:
        pairs = y.reshape(*x.shape[:-1], n // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack([a + b, a - b], dim=-2)
        half *= 2
    return y.reshape(x.shape) / math.sqrt(n)


def require_orthogonal(rotation: Tensor, size: int | None = None) -> None:
    """Return if `rotation` [n, n] is orthogonal (and n is `size`).

    Raises ShapeError for another shape, NonFiniteError, SchemeError if Q Qᵀ is not 1.
    """
    n = rotation.shape[0] if rotation.ndim else 0
    if rotation.ndim != 2 or rotation.shape[1] != n or (size is not None and n != size):
        wanted = f"[{size}, {size}]" if size is not None else "a square matrix"
        raise ShapeError(f"a rotation of shape {tuple(rotation.shape)}", remedy=f"Give {wanted}.")
    require_finite(rotation, "rotation")
    q = rotation.to(torch.float64)
    worst = float((q @ q.T - torch.eye(n, dtype=torch.float64, device=q.device)).abs().max())
    if worst > TOLERANCE:
        raise SchemeError(
            f"the matrix is not orthogonal: Q Qᵀ is off by {worst:.2g}",
            where="rotation",
            remedy="Divide a Hadamard matrix by sqrt(n); take Q, not R, of a QR decomposition.",
        )


def rotate_input(weight: Tensor, rotation: Tensor) -> Tensor:
    """w Q, for a linear [out, in] whose input comes rotated (x Q): the same output.

    Computed in float64, returned in the weight's dtype. Raises as `require_orthogonal`.
    """
    require_orthogonal(rotation, weight.shape[1])
    return (weight.to(torch.float64) @ rotation.to(weight.device, torch.float64)).to(weight.dtype)


def rotate_output(weight: Tensor, rotation: Tensor) -> Tensor:
    """Qᵀ w, for a linear [out, in] whose output y is to come rotated (y Q).

    Also right for a bias [out], and for an embedding turned to [hidden, tokens]. Computed in
    float64, returned in the weight's dtype. Raises as `require_orthogonal`.
    """
    require_orthogonal(rotation, weight.shape[0])
    q = rotation.to(weight.device, torch.float64)
    return (q.T @ weight.to(torch.float64)).to(weight.dtype)


def kurtosis(x: Tensor) -> float:
    """mean((x - mean)^4) / variance^2 over all elements: 3 for a Gaussian, more for heavy tails.

    Raises ShapeError for fewer than two elements or a constant, NonFiniteError.
    """
    require_finite(x, "x")
    centred = x.detach().to(torch.float64).flatten()
    centred = centred - centred.mean() if len(centred) else centred
    variance = float(centred.square().mean()) if len(centred) > 1 else 0.0
    if variance == 0.0:
        raise ShapeError(
            f"{len(centred)} elements without any spread", where="kurtosis", remedy="Needs some."
        )
    return float((centred / math.sqrt(variance)).pow(4).mean())


def _require_size(n: int) -> None:
    if n < 1:
        raise SchemeError(f"a rotation of size {n}", remedy="Give at least 1.")
