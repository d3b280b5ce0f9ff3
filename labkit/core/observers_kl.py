"""The KL observer: the clipping threshold whose quantized histogram loses least information."""

from __future__ import annotations

import numpy as np
import torch

from labkit.core.observers_base import Observer
from labkit.core.observers_histogram import Counts, Histogram, Reals

_BINS = 2048
_TRACE = 1e-4  # of one count; MXNet and ONNX Runtime smooth by the same amount

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


class KLObserver(Observer):
    """TensorRT's entropy calibration.

    For every candidate threshold, i bins of the 2048-bin histogram of |x|: P is the first i bins
    with everything beyond added to the last of them (clipping), Q the same i bins merged into as
    many levels as the integers have for |x| and spread out again (rounding). The threshold with
    the least KL(P || Q) wins. Source: Migacz 2017, "8-bit Inference with TensorRT", GTC.

    The levels are 2^(bits-1), 128 for int8; where asymmetric codes are all spent on one sign
    (after ReLU, say) 2^bits. The range is [-t, t], and if asymmetric cut to what was seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._histogram = Histogram()

    def _add(self, x: torch.Tensor) -> None:
        self._histogram.add(x)

    def _range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        seen = self._histogram
        largest = max(abs(seen.lo), abs(seen.hi))
        one_sided = seen.lo >= 0.0 or seen.hi <= 0.0
        levels = 2**bits if one_sided and not symmetric else 2 ** (bits - 1)
        counts = seen.absolute().reshape(_BINS, -1).sum(axis=1)
        if counts[1:].any():
            # Zeros (after ReLU, padding) are exact at any scale: their spike would outweigh the
            # rest. NVIDIA's own calibrator levels it in this way.
            counts[0] = counts[1]
        bins = entropy_threshold(counts, levels)
        # A histogram bin's edge lies beyond the largest value; then nothing is clipped.
        threshold = min(bins * seen.width * (len(seen.counts) / 2 / _BINS), largest)
        if symmetric:
            return -threshold, threshold
        return max(-threshold, seen.lo), min(threshold, seen.hi)


def entropy_threshold(counts: Counts, levels: int) -> int:
    """Return how many leading bins of a histogram of |x| to keep (int64 [bins], not all 0).

    At most all bins up to the last filled one; that many when there are no more than ``levels``.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1
    best, least = used, np.inf
    total = int(counts.sum())
    for kept in range(levels, used + 1):
        clipped = counts[:kept].astype(np.float64)
        inside = clipped.copy()
        clipped[-1] += total - inside.sum()
        merged = spread_over_levels(inside, clipped > 0, levels)
        loss = kl_divergence(clipped, merged)
        if loss <= least:  # on a tie keep the wider range, which clips less
            best, least = kept, loss
    return best


def spread_over_levels(counts: Reals, filled: Flags, levels: int) -> Reals:
    """Merge bins into ``levels`` runs of nearly equal length, and spread each run out again.

    A run's sum is shared equally by its bins that are ``filled`` in P: an empty bin stays empty,
    for quantizing does not put values where there were none. Where outliers fill a bin of P in a
    run that is empty, Q gets a trace: infinitely unlikely would forbid to clip a lone outlier.
    """
    edges = np.arange(levels) * len(counts) // levels
    sums = np.add.reduceat(counts, edges)
    shares = sums / np.maximum(np.add.reduceat(filled.astype(np.int64), edges), 1)
    lengths = np.diff(np.append(edges, len(counts)))
    return np.asarray(np.repeat(np.maximum(shares, _TRACE), lengths) * filled)


def kl_divergence(p: Reals, q: Reals) -> float:
    """Return KL(p || q) in nats of two histograms, infinite where q is 0 and p is not."""
    filled = p > 0
    if not filled.any() or bool((q[filled] <= 0).any()):
        return float(np.inf)
    share = p[filled] / p.sum()
    return float((share * np.log(share / (q[filled] / q.sum()))).sum())
