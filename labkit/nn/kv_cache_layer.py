"""What one layer of a KV cache does, whatever it stores the numbers in."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from labkit.core.errors import NonFiniteError


class CacheLayer(ABC):
    """Keys and values of one layer, for `capacity` tokens that are allocated at once.

    A subclass keeps its tensors in `buffers`, each with the batch as its first axis. Callers are
    `labkit.nn.kv_cache.KVCache`, which checks shapes and capacity before it comes here.
    """

    def __init__(self, batch: int, kv_heads: int, capacity: int, dim: int) -> None:
        self.shape = (batch, kv_heads, capacity, dim)
        self.length = 0
        self.buffers: dict[str, Tensor] = {}

    def allocate(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.buffers[name] = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.buffers.values())

    def select(self, rows: Tensor) -> None:
        """Sequences in another order (beam search); a row may come more than once."""
        for name, part in self.buffers.items():
            self.buffers[name] = part.index_select(0, rows.to(part.device))
        self.shape = (len(rows), *self.shape[1:])

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Keep [batch, kv_heads, tokens, dim] behind what is there."""

    @abstractmethod
    def keys(self) -> Tensor:
        """float32 [batch, kv_heads, length, dim], as the cache holds them."""

    @abstractmethod
    def values(self) -> Tensor:
        """float32 [batch, kv_heads, length, dim], as the cache holds them."""

    @abstractmethod
    def attend(self, query: Tensor, softmax_scale: float) -> Tensor:
        """[batch, heads, dim] in query's dtype."""


def to_float16(x: Tensor, what: str) -> Tensor:
    """x in float16. Raises NonFiniteError where a number is beyond ±65504, infinite or NaN."""
    half = x.detach().to(torch.float16)
    if not bool(half.isfinite().all()):
        raise NonFiniteError(
            f"{what} reach {float(x.abs().max()):g}",
            "KVCache",
            "float16 ends at 65504; look for NaN or infinity, or choose int8 or fp8.",
        )
    return half
