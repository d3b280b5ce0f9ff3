"""How much a quantized tensor, or a quantized model's output, differs from the original.

All take (reference, approximation), compute in float64 and return a Python float. They raise
ShapeError for shapes that differ or hold nothing, and NonFiniteError for NaN or infinity.
"""

from __future__ import annotations

import math

import torch

from labkit.core.errors import ShapeError
from labkit.core.finite import require_finite

_ROWS = 256  # logits are turned into float64 this many tokens at a time
_ELEMENTS = 2**20  # and weights


def mse(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Return the mean of the squared differences, in the square of the tensors' unit."""
    x, y = _checked(reference, approximation)
    return float((x - y).square().mean())


def max_abs_error(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    x, y = _checked(reference, approximation)
    return float((x - y).abs().max())


def sqnr_db(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum x² / sum (x - x̂)²), in dB.

    Powers, hence 10 and not 20; the mean is part of the signal. One more bit is worth about 6 dB.
    Infinite without error; minus infinity where the signal is 0 and the error is not.
    """
    _require_pair(reference, approximation)
    # Piece by piece: whole in float64, a layer of a large model would take gigabytes.
    flat = (reference.detach().reshape(-1), approximation.detach().reshape(-1))
    pieces = [torch.split(tensor, _ELEMENTS) for tensor in flat]
    pairs = list(zip(*pieces, strict=True))
    # A common factor cancels in the ratio, and keeps the squares of tiny numbers from vanishing.
    largest = max(max(float(x.abs().max()), _distance(x, y)) for x, y in pairs) or 1.0
    signal = sum(float((x.double() / largest).square().sum()) for x, _ in pairs)
    noise = sum(float(((x.double() - y.double()) / largest).square().sum()) for x, y in pairs)
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def cosine(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Return the cosine of the angle between the flattened tensors, -1 to 1.

    The mean is not removed (that would be the correlation), and a common factor changes nothing:
    a cosine of 1 does not say that the tensors are equal. Two zero tensors have 1, one has 0.
    """
    x, y = _checked(reference, approximation)
    x_largest, y_largest = float(x.abs().max()), float(y.abs().max())
    if x_largest == 0.0 or y_largest == 0.0:
        return float(x_largest == y_largest)
    x, y = (x / x_largest).reshape(-1), (y / y_largest).reshape(-1)
    value = float(torch.dot(x, y) / (x.norm() * y.norm()))
    return max(-1.0, min(1.0, value))


def logit_kl(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Return KL(softmax(reference) || softmax(approximation)), nats, mean over tokens.

    Both are logits of shape [..., vocabulary], before the softmax; a constant added to a token's
    logits changes nothing. The order matters: the reference's probabilities are the weights.
    """
    _require_pair(reference, approximation)
    if reference.ndim == 0:
        raise ShapeError("a single number", where="logit_kl", remedy="Pass [..., vocabulary].")
    vocabulary = reference.shape[-1]
    pairs = zip(
        torch.split(reference.detach().reshape(-1, vocabulary), _ROWS),
        torch.split(approximation.detach().reshape(-1, vocabulary), _ROWS),
        strict=True,
    )
    total = 0.0
    for p_logits, q_logits in pairs:
        log_p = torch.log_softmax(p_logits.to(torch.float64), dim=-1)
        log_q = torch.log_softmax(q_logits.to(torch.float64), dim=-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    # KL is never negative; rounding can make a sum of nearly nothing so.
    return max(0.0, total / (reference.numel() / vocabulary))


def _distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() - y.double()).abs().max())


def _checked(
    reference: torch.Tensor, approximation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    _require_pair(reference, approximation)
    return reference.detach().to(torch.float64), approximation.detach().to(torch.float64)


def _require_pair(reference: torch.Tensor, approximation: torch.Tensor) -> None:
    if reference.shape != approximation.shape or reference.numel() == 0:
        raise ShapeError(
            f"shapes {tuple(reference.shape)} and {tuple(approximation.shape)}",
            where="metric",
            remedy="Compare two tensors of one shape that hold at least one element.",
        )
    require_finite(reference, "reference")
    require_finite(approximation, "approximation")
