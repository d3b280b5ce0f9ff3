"""A cache for experiments: it keeps exact numbers, and rounds them in any way when read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]


class RoundedCache:
    """What `TransformersCache` needs of a KVCache, with a rounding of one's own.

    Args:
        round_keys, round_values: [batch, kv_heads, tokens, head_dim] -> the same shape, rounded.
            They see all tokens of a layer at once.
    """

    def __init__(self, round_keys: Rounding, round_values: Rounding, capacity: int = 2**20) -> None:
        self.capacity = capacity
        self._round = round_keys, round_values
        self._held: dict[int, Tensor] = {}

    @property
    def layers(self) -> list[int]:
        return sorted(self._held)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        new = torch.stack([keys, values])
        old = self._held.get(layer)
        self._held[layer] = new if old is None else torch.cat([old, new], dim=-2)

    def keys(self, layer: int) -> Tensor:
        return self._round[0](self._held[layer][0])

    def values(self, layer: int) -> Tensor:
        return self._round[1](self._held[layer][1])

    def layer_length(self, layer: int) -> int:
        return self._held[layer].shape[-2] if layer in self._held else 0

    def select(self, rows: Tensor) -> None:
        self._held = {layer: held.index_select(1, rows) for layer, held in self._held.items()}

    def reset(self) -> None:
        self._held.clear()
