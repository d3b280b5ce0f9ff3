"""What every quantized weight can do, however it stores its codes."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

import torch


@runtime_checkable
class Quantized(Protocol):
    """A quantized weight matrix: integers with scales, a codebook, or whatever a method invents.

    `QuantizedTensor` is one. Every class of this kind is a dataclass in `labkit.core` whose fields
    are tensors, plain values, a QuantScheme or again such dataclasses: so a run that was killed
    can read back what it had finished, without knowing the class.
    """

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight that this stands for, [out, in]."""
        ...

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each weight, metadata counted."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes stored, metadata counted."""
        ...

    def dequantize(self) -> torch.Tensor:
        """Return the float32 weight [out, in] that is computed with."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Return the same weight on another device."""
        ...
