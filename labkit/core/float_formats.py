"""Floating-point formats as data: how many bits hold the exponent, how many the mantissa.

A float is a number in scientific notation, base two:
``(-1)^sign * 1.mantissa * 2^(exponent - bias)``. The fields are stored from the left in the order
sign, exponent, mantissa. Two corners differ:

- **Subnormals.** Where the exponent field is 0 the implicit leading 1 becomes a 0, and the exponent
  stays at its smallest value. The numbers then reach zero in even steps.
- **Specials.** IEEE 754 gives up the largest exponent field for infinity and NaN. Small formats
  cannot afford that: FP8 E4M3 gives up one code for NaN, FP4 E2M1 gives up none.

Sources: IEEE 754-2019 section 3; "FP8 Formats for Deep Learning" (Micikevicius et al. 2022);
OCP 8-bit Floating Point Specification (OFP8) v1.0; OCP Microscaling Formats (MX) v1.0, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from labkit.core.errors import SchemeError

Specials = Literal["ieee", "nan_only", "none"]
Overflow = Literal["inf", "nan", "saturate"]

# What a format can answer when a number is too large; the first is its default.
_OVERFLOW_CHOICES: dict[Specials, tuple[Overflow, ...]] = {
    "ieee": ("inf", "saturate"),
    "nan_only": ("saturate", "nan"),
    "none": ("saturate",),
}


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format of ``signed + exponent_bits + mantissa_bits`` bits.

    ``specials`` says which codes are not numbers: "ieee" (exponent field all ones: infinity where
    the mantissa is 0, else NaN), "nan_only" (all bits but the sign are ones: NaN), "none".
    ``subnormals=False`` means that exponent field 0 is an ordinary exponent and zero has no code.

    Raises SchemeError for sizes that make no format, and for one whose numbers float32 cannot hold.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Specials = "ieee"
    signed: bool = True
    subnormals: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.exponent_bits <= 8 or not 0 <= self.mantissa_bits <= 23:
            raise SchemeError(
                f"{self.exponent_bits} exponent bits and {self.mantissa_bits} mantissa bits",
                where=self.name,
                remedy="Use 1 to 8 exponent bits and 0 to 23 mantissa bits.",
            )
        if self.specials == "ieee" and (self.exponent_bits < 2 or self.mantissa_bits < 1):
            raise SchemeError(
                "infinity and NaN take 2 exponent bits and 1 mantissa bit or more",
                where=self.name,
                remedy='Use specials="nan_only" or "none".',
            )
        if self.max >= 2.0**128:
            raise SchemeError(
                f"the largest number, {self.max:.3g}, is beyond float32",
                where=self.name,
                remedy='Use fewer exponent bits, or specials="ieee".',
            )

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field, so that small numbers have a code too."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, shared by all subnormals."""
        return (1 if self.subnormals else 0) - self.bias

    @property
    def max_code(self) -> int:
        """Code of the largest finite number: the codes above it (sign apart) are specials."""
        if self.specials == "ieee":
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) - 1
        all_ones = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return all_ones - 1 if self.specials == "nan_only" else all_ones

    @property
    def max(self) -> float:
        """Largest finite number."""
        exponent = self.max_code >> self.mantissa_bits
        mantissa = self.max_code - (exponent << self.mantissa_bits)
        return (1 + mantissa * self.eps) * 2.0 ** (exponent - self.bias)

    @property
    def min(self) -> float:
        """Smallest number: ``-max``, or the smallest positive one in an unsigned format."""
        return -self.max if self.signed else self.min_subnormal

    @property
    def min_normal(self) -> float:
        """Smallest positive number of full precision."""
        return float(2.0**self.min_exponent)

    @property
    def min_subnormal(self) -> float:
        """Smallest positive number (the smallest normal one where there are no subnormals)."""
        return self.min_normal * (self.eps if self.subnormals else 1.0)

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger number."""
        return float(2.0**-self.mantissa_bits)

    @property
    def has_nan(self) -> bool:
        """Whether a code says "not a number"."""
        return self.specials != "none"

    @property
    def has_inf(self) -> bool:
        """Whether a code says infinity."""
        return self.specials == "ieee"

    def resolve_overflow(self, overflow: Overflow | None) -> Overflow:
        """The overflow behaviour to use: the format's default for None.

        Raises SchemeError where the format has no code for what was asked.
        """
        choices = _OVERFLOW_CHOICES[self.specials]
        if not self.signed:
            choices = ("nan", "saturate")
        if overflow is None:
            return choices[0]
        if overflow not in choices:
            raise SchemeError(
                f"no code to answer an overflow with {overflow!r}",
                where=self.name,
                remedy=f"Choose from {', '.join(choices)}.",
            )
        return overflow


FORMATS: dict[str, FloatFormat] = {
    fmt.name: fmt
    for fmt in (
        FloatFormat("fp32", exponent_bits=8, mantissa_bits=23),
        FloatFormat("fp16", exponent_bits=5, mantissa_bits=10),
        FloatFormat("bf16", exponent_bits=8, mantissa_bits=7),
        FloatFormat("fp8_e4m3", exponent_bits=4, mantissa_bits=3, specials="nan_only"),
        FloatFormat("fp8_e5m2", exponent_bits=5, mantissa_bits=2),
        FloatFormat("fp4_e2m1", exponent_bits=2, mantissa_bits=1, specials="none"),
        # A power of two and nothing else: the scale of an MX block (OCP MX v1.0, section 5.4.1).
        FloatFormat("e8m0", 8, 0, specials="nan_only", signed=False, subnormals=False),
    )
}
