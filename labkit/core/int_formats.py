"""Integers as number formats: two's complement, ``bits`` wide, evenly spaced.

A code is the bit pattern, 0 to ``2**bits - 1``. The top bit weighs ``-2**(bits-1)``, the others
weigh what they always do, so the upper half of the codes stands for the negative numbers. There is
one number more below zero than above; schemes that want symmetry leave it out (labkit.core.affine).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.core.errors import SchemeError


@dataclass(frozen=True)
class IntFormat:
    """Signed integers of ``bits`` bits, 2 to 16. Raises SchemeError outside that."""

    name: str
    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise SchemeError(f"{self.bits} bits", self.name, "Use 2 to 16 bits.")

    @property
    def min(self) -> float:
        """Smallest number, ``-2**(bits-1)``."""
        return float(-(2 ** (self.bits - 1)))

    @property
    def max(self) -> float:
        """Largest number, ``2**(bits-1) - 1``."""
        return float(2 ** (self.bits - 1) - 1)

    @property
    def has_nan(self) -> bool:
        """No code says "not a number"."""
        return False


def decode_int(codes: torch.Tensor, fmt: IntFormat) -> torch.Tensor:
    """Two's complement: int64 bit patterns of any shape to float64 values of the same shape."""
    negative = codes >> (fmt.bits - 1)
    return (codes - (negative << fmt.bits)).double()


def encode_int(x: torch.Tensor, fmt: IntFormat) -> torch.Tensor:
    """Nearest integer, ties to even, saturating at both ends, as int64 bit patterns.

    x: float64 of any shape without NaN; infinity saturates.
    """
    # Clamped while still a float: converting an out-of-range float to an integer is undefined.
    value = torch.round(x).clamp(fmt.min, fmt.max).long()
    return value & ((1 << fmt.bits) - 1)


INTEGERS: dict[str, IntFormat] = {
    f"int{bits}": IntFormat(f"int{bits}", bits) for bits in range(2, 9)
}
