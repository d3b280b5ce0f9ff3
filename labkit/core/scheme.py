"""QuantScheme: what a number is stored as, and which numbers share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from labkit.core.affine import integer_range
from labkit.core.errors import SchemeError

Granularity = Literal["tensor", "channel", "group", "token"]


@dataclass(frozen=True)
class QuantScheme:
    """An affine integer scheme.

    Args:
        bits: width of a code, 1 to 8 (symmetric: 2 to 8).
        symmetric: signed codes with zero_point 0, or unsigned codes with a zero_point each.
        granularity: which elements share one scale: the whole "tensor", an output "channel" (a
            row of [out, in]), a "group" of ``group_size`` neighbours along in, or a "token" (a row
            of activations [..., features]).
        group_size: elements that share a scale; for granularity "group" alone.
        narrow_range: symmetric codes are -(2^(b-1)-1) .. 2^(b-1)-1 (the default; {-1, 0, 1} for 2
            bits), or with False -2^(b-1) .. 2^(b-1)-1. `labkit.core.affine` says why. Means
            nothing when asymmetric, where codes are 0 .. 2^b-1.

    Raises:
        SchemeError: the arguments contradict each other.
    """

    bits: int
    symmetric: bool = True
    granularity: Granularity = "channel"
    group_size: int | None = None
    narrow_range: bool = True

    def __post_init__(self) -> None:
        integer_range(self.bits, self.symmetric, self.narrow_range)
        if self.granularity not in get_args(Granularity):
            raise SchemeError(
                f"granularity {self.granularity!r}",
                remedy=f"Choose one of {', '.join(get_args(Granularity))}.",
            )
        if self.granularity != "group":
            if self.group_size is not None:
                raise SchemeError(
                    f"group_size {self.group_size} with granularity {self.granularity!r}",
                    remedy='Set granularity="group", or leave group_size out.',
                )
            return
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SchemeError(
                f"group_size {size!r} with granularity 'group'",
                remedy="Give a positive number of elements, such as 32, 64 or 128.",
            )

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return integer_range(self.bits, self.symmetric, self.narrow_range)[0]

    @property
    def qmax(self) -> int:
        """The largest code."""
        return integer_range(self.bits, self.symmetric, self.narrow_range)[1]

    @property
    def code_dtype(self) -> torch.dtype:
        """The integer type that holds an unpacked code: int8 when symmetric, else uint8."""
        return torch.int8 if self.symmetric else torch.uint8

    def __str__(self) -> str:
        kind = "sym" if self.symmetric else "asym"
        if self.symmetric and not self.narrow_range:
            kind = "sym full-range"
        size = f" {self.group_size}" if self.granularity == "group" else ""
        return f"int{self.bits} {kind} {self.granularity}{size}"
