"""What became of a model on its way to GGUF."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from labkit.quantize.gguf_types import row_bytes


@dataclass(frozen=True)
class Converted:
    """One tensor of the file.

    Args:
        name: GGUF's.
        source: Hugging Face's; "" for one that was computed.
        shape: outermost first.
        type_name: how it is stored.
        reason: why not in the type that the mix asks for; "" if it is.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    type_name: str
    reason: str = ""

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.weights // self.shape[-1] * row_bytes(self.type_name, self.shape[-1])


@dataclass(frozen=True)
class Conversion:
    """A file that was written.

    Args:
        file_type: the mix, "Q4_K_M".
        architecture: GGUF's name of it.
        nbytes: of the file.
        tensors: in the file's order.
        notes: what the reader of the file should know.
    """

    path: Path
    file_type: str
    architecture: str
    nbytes: int
    tensors: tuple[Converted, ...]
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together, norms included."""
        weights = sum(tensor.weights for tensor in self.tensors)
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / weights

    @property
    def fallbacks(self) -> tuple[Converted, ...]:
        """Tensors whose rows did not fit the type that the mix asks for."""
        return tuple(tensor for tensor in self.tensors if tensor.reason)

    def count(self) -> Counter[str]:
        """Tensors of each type."""
        return Counter(tensor.type_name for tensor in self.tensors)
