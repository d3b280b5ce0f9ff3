"""Formats that are a list of numbers: a code is an index into the list.

Both lists span -1 to 1, so a block of weights is divided by its largest magnitude first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Codebook:
    """``2**bits`` numbers in the order of their codes, exactly representable in float32."""

    name: str
    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return (len(self.values) - 1).bit_length()

    @property
    def min(self) -> float:
        """Smallest number."""
        return min(self.values)

    @property
    def max(self) -> float:
        """Largest number."""
        return max(self.values)

    @property
    def has_nan(self) -> bool:
        """No code says "not a number"."""
        return False


def decode_codebook(codes: torch.Tensor, book: Codebook) -> torch.Tensor:
    """Look up int64 codes of any shape; returns float64 of the same shape."""
    return torch.tensor(book.values, dtype=torch.float64, device=codes.device)[codes]


def encode_codebook(x: torch.Tensor, book: Codebook) -> torch.Tensor:
    """Code of the nearest number; a tie goes to the smaller one, as in bitsandbytes.

    x: float64 of any shape without NaN; beyond the ends (infinity too) it saturates.
    Where two codes hold the same number the lower code is used. Returns int64.
    """
    # number -> code; reversed, so that the lower of two codes for one number is written last.
    code_of = {value: code for code, value in reversed(list(enumerate(book.values)))}
    levels = sorted(code_of)
    grid = torch.tensor(levels, dtype=torch.float64, device=x.device)
    codes = torch.tensor([code_of[level] for level in levels], device=x.device)
    midpoints = (grid[:-1] + grid[1:]) / 2
    return codes[torch.bucketize(x, midpoints)]


def normal_float4() -> Codebook:
    """NF4: 16 quantiles of the normal distribution, so that normal weights use each code alike.

    QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3 and appendix E. Evenly spaced
    probabilities from 0.5 to ``offset`` go through the inverse normal distribution function: 8
    numbers above zero, 7 below it, and zero itself, so that zero is exact; then all are divided by
    the largest. ``offset`` keeps the outermost probability off 1, whose quantile is infinite: it is
    ``1 - (1/32 + 1/30) / 2``, the mean for 16 and 15 equal bins.

    The result equals bitsandbytes' table bit for bit; for that the probabilities are rounded to
    float32, and the quantiles again before the division, as its ``create_normal_map`` does.
    """
    offset = 0.9677083
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9).double())[:-1]
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8).double())[:-1]
    zero = torch.zeros(1, dtype=torch.float64)
    quantiles = torch.cat([below, zero, above]).sort().values.float()
    return Codebook("nf4", tuple((quantiles / quantiles.max()).tolist()))


def bitsandbytes_float4() -> Codebook:
    """FP4 of bitsandbytes: sign, 2 exponent bits, 1 mantissa bit, divided by 12.

    Not the FP4 E2M1 of OCP: its exponent field counts downwards (1, 2, 3 mean 8, 4, 2), and
    field 0 holds zero and 1/16. bitsandbytes/functional.py, ``get_4bit_type``.
    """
    magnitudes = [0.0, 1 / 16]
    magnitudes += [2.0 ** (4 - exponent) * (1 + m / 2) for exponent in (1, 2, 3) for m in (0, 1)]
    # 0 - m rather than -m: code 8 is a plain zero, not a negative one.
    table = torch.tensor(magnitudes + [0 - m for m in magnitudes], dtype=torch.float32)
    return Codebook("fp4_bnb", tuple((table / 12).tolist()))


CODEBOOKS: dict[str, Codebook] = {
    book.name: book for book in (normal_float4(), bitsandbytes_float4())
}
