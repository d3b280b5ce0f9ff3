"""How the K-quants with a minimum choose their scales: the two searches of ggml, to read.

A sub-block of 16 or 32 weights is stored as x ≈ scale * code + minimum, code = 0 … levels. The
affine search tries a row of candidate scales and fits a line through the codes of each. The scales
(and the minima) of the sub-blocks of a super-block are then rounded themselves, to 4 or 6 bits;
with an importance, the second search chooses that grid.

Equal bytes need equal roundings: every sum runs over its terms one after the other, in float32, and
every product is taken from left to right. NumPy works on all the blocks at once; the loops are over
the positions within a block.

Source: ggml-quants.c, make_qkx2_quants, make_qkx3_quants, make_qp_quants and nearest_int, of
llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUND = np.float32(1.5 * 2**23)
# A scale below this is 0.
SMALLEST_SCALE = np.float32(1e-15)


@dataclass(frozen=True)
class Search:
    """Which candidates the affine search tries.

    Attributes:
        first, step: candidate k spreads the range of the sub-block over levels + first + step * k
            steps, so the largest weights are cut off where first + step * k > 0.
        steps: how many there are, less one.
        absolute: whether the error is Σ w |x - x̂| rather than Σ w (x - x̂)².
    """

    first: float
    step: float
    steps: int
    absolute: bool = False

    def spreads(self, levels: int) -> list[np.float32]:
        """levels + first + step * k for each candidate, rounded as in C."""
        first, step = np.float32(self.first), np.float32(self.step)
        return [first + step * np.float32(k) + np.float32(levels) for k in range(self.steps + 1)]


def nearest_int(x: np.ndarray) -> np.ndarray:
    """Round float32 half to even, to int32, as ggml does: 1.5 * 2^23 + x has steps of 1.

    What lies outside of ±2^22 comes out as some number (infinity and NaN too), always the same one.
    """
    bits = (x + _ROUND).view(np.int32)
    return (bits & 0x007FFFFF) - 0x00400000


def ordered_sum(terms: np.ndarray) -> np.ndarray:
    """Sum float32 [..., n] over its last axis from the first term to the last."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for position in range(terms.shape[-1]):
        total = total + terms[..., position]
    return total


def affine_search(
    x: np.ndarray, weight: np.ndarray, levels: int, search: Search
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scale and the minimum with the smallest weighted error.

    Args:
        x: float32 [blocks, n].
        weight: float32 [blocks, n], what an error at that position counts.
        levels: the largest code.

    Returns:
        scale: float32 [blocks], 0 where all x are equal (or where they are, and above 0).
        minimum: float32 [blocks], as it is stored: x ≈ scale * code - minimum.
        codes: uint8 [blocks, n], those of the search; they hold where the rounded scale is 0.
    """
    high = x.max(axis=1)
    low = x.min(axis=1)
    low = np.where(low > 0, np.float32(0), low)  # -0 stays -0
    flat = high == low
    weight_sum, x_sum = ordered_sum(weight), ordered_sum(weight * x)

    per_step = np.float32(levels) / (high - low)
    scale = np.float32(1) / per_step
    codes = _codes(x, low, per_step, levels)
    error = _error(x, weight, codes, scale, low, search.absolute)
    for spread in search.spreads(levels):
        # A better line moves the minimum, and with it all the candidates that come after.
        candidate = _codes(x, low, spread / (high - low), levels)
        line, start, solvable = _fitted_line(x, weight, candidate, weight_sum, x_sum)
        its_error = _error(x, weight, candidate, line, start, search.absolute)
        better = solvable & (its_error < error) & ~flat
        scale = np.where(better, line, scale)
        low = np.where(better, start, low)
        error = np.where(better, its_error, error)
        codes = np.where(better[:, None], candidate, codes)
    scale = np.where(flat, np.float32(0), scale)
    codes = np.where(flat[:, None], np.float32(0), codes)
    return scale, -low, codes.astype(np.uint8)


def _codes(x: np.ndarray, low: np.ndarray, per_step: np.ndarray, levels: int) -> np.ndarray:
    """Codes 0 … levels of x [blocks, n], as float32."""
    codes = nearest_int(per_step[:, None] * (x - low[:, None]))
    return np.clip(codes, 0, levels).astype(np.float32)


def _error(x, weight, codes, scale, low, absolute: bool) -> np.ndarray:
    """The weighted error of scale * code + low, float32 [blocks]."""
    off = scale[:, None] * codes + low[:, None] - x
    return ordered_sum(weight * (np.abs(off) if absolute else off * off))


def _fitted_line(x, weight, codes, weight_sum, x_sum):
    """Weighted least squares of x on its codes: slope, start (at most 0), and where they exist."""
    code_sum = ordered_sum(weight * codes)
    square_sum = ordered_sum(weight * codes * codes)
    product_sum = ordered_sum(weight * codes * x)
    determinant = weight_sum * square_sum - code_sum * code_sum
    slope = (weight_sum * product_sum - x_sum * code_sum) / determinant
    start = (square_sum * x_sum - code_sum * product_sum) / determinant
    above = start > 0
    slope = np.where(above, product_sum / square_sum, slope)
    start = np.where(above, np.float32(0), start)
    return slope, start, determinant > 0


def scale_search(
    values: np.ndarray, weight: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The scale of a grid 0 … levels for numbers that are not negative.

    Nine candidate scales; the codes of the best are then changed one at a time, in at most five
    sweeps, wherever that brings the line through them closer.

    Args:
        values: float32 [blocks, n]: scales of sub-blocks, or their minima.
        weight: float32 [blocks, n].

    Returns:
        scale: float32 [blocks], and codes: uint8 [blocks, n].
    """
    high = values.max(axis=1, initial=np.float32(0))
    per_step = np.float32(levels) / high
    codes = _byte(nearest_int(per_step[:, None] * values))
    error = _scale_error(values, weight, codes, per_step)
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        candidate = (np.float32(0.1) * np.float32(k) + np.float32(levels)) / high
        codes = np.minimum(nearest_int(candidate[:, None] * values), levels)
        its_error = _scale_error(values, weight, codes, candidate)
        better = its_error < error
        per_step = np.where(better, candidate, per_step)
        error = np.where(better, its_error, error)

    codes = np.minimum(nearest_int(per_step[:, None] * values), levels).astype(np.float32)
    product_sum = ordered_sum(weight * values * codes)
    square_sum = ordered_sum(weight * codes * codes)
    codes = _byte(codes.astype(np.int32))
    for _ in range(5):
        product_sum, square_sum = _sweep(values, weight, levels, codes, product_sum, square_sum)
    scale = np.where(square_sum > 0, product_sum / square_sum, np.float32(0))
    empty = high < SMALLEST_SCALE
    return np.where(empty, np.float32(0), scale), np.where(empty[:, None], 0, codes).astype(
        np.uint8
    )


def _byte(codes: np.ndarray) -> np.ndarray:
    """int32 codes as ggml keeps them: a byte (a slope that rounding made negative wraps around)."""
    return (codes & 0xFF).astype(np.float32)


def _scale_error(values, weight, codes, per_step) -> np.ndarray:
    off = values - (np.float32(1) / per_step)[:, None] * codes.astype(np.float32)
    return ordered_sum(weight * off * off)


def _sweep(values, weight, levels: int, codes, product_sum, square_sum):
    """Give each code in turn its best value for the others' line; ``codes`` change in place."""
    for position in range(values.shape[1]):
        w, x, code = weight[:, position], values[:, position], codes[:, position]
        product = product_sum - w * x * code
        square = square_sum - w * code * code
        new = np.minimum(nearest_int(x * square / product), levels)
        new_code = new.astype(np.float32)
        changed = (product > 0) & (square > 0) & (new_code != code)
        product = product + w * x * new_code
        square = square + w * new_code * new_code
        closer = product * product * square_sum > product_sum * product_sum * square
        changed &= closer
        codes[:, position] = np.where(changed, _byte(new), code)
        product_sum = np.where(changed, product, product_sum)
        square_sum = np.where(changed, square, square_sum)
    return product_sum, square_sum
