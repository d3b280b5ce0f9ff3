"""Float layouts that the exercises on codes are tried on: the named ones and random others."""

from __future__ import annotations

import numpy as np

from labkit.core.dtypes import FloatFormat

Layout = tuple[int, int, str]
"""Exponent bits, mantissa bits, and which codes are specials (see FloatFormat)."""

FP32: Layout = (8, 23, "ieee")
FP16: Layout = (5, 10, "ieee")
BF16: Layout = (8, 7, "ieee")
E4M3: Layout = (4, 3, "nan_only")
E5M2: Layout = (5, 2, "ieee")
FP4: Layout = (2, 1, "none")


def float_format(exponent_bits: int, mantissa_bits: int, specials: str) -> FloatFormat:
    """The library's format of that layout."""
    return FloatFormat(
        f"e{exponent_bits}m{mantissa_bits}", exponent_bits, mantissa_bits, specials=specials
    )


def random_layout(rng: np.random.Generator) -> Layout:
    """A format of 5 to 13 bits that no library has."""
    specials = ("ieee", "nan_only", "none")[int(rng.integers(3))]
    return int(rng.integers(2, 7)), int(rng.integers(2, 7)), specials
