"""A KVCache where transformers expects one of its own: `generate(past_key_values=…)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from labkit.core.errors import SchemeError
from labkit.nn.kv_cache import KVCache


class TransformersCache(Cache):
    """Hands a model its keys and values as the KVCache holds them, in the model's dtype.

        cache = TransformersCache(KVCache.for_model(model, "int8", capacity=512))
        model.generate(ids, past_key_values=cache, max_new_tokens=64)

    The model's own attention runs, over one layer dequantized at a time: this shows what a kind of
    cache does to the text, not to the time. New tokens, too, are seen as the cache holds them.
    transformers 4.51 asks for the length and the keys; version 5 also for the sizes of its masks.
    """

    def __init__(self, cache: KVCache) -> None:
        # Not super().__init__: version 5 builds layers of its own there, 4.51 does nothing.
        self.cache = cache
        self.layers: list[Any] = []
        self.layer_class_to_replicate = None
        self.offloading = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.cache.append(layer_idx, key_states, value_states)
        dtype = key_states.dtype
        return self.cache.keys(layer_idx).to(dtype), self.cache.values(layer_idx).to(dtype)

    def get_seq_length(self, layer_idx: int | None = 0, *args: Any) -> int:
        return self.cache.layer_length(layer_idx or 0)

    def get_max_cache_shape(self, *args: Any) -> int:
        return self.cache.capacity

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.cache.capacity

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int) -> tuple[int, int]:
        # Versions between 4.53 and 5 hand over the positions of the query instead of their count.
        count = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
        return self.get_seq_length(layer_idx) + count, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length(layer_idx)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.cache.select(beam_idx)

    def reset(self) -> None:
        self.cache.reset()

    @property
    def is_croppable(self) -> bool:
        return False

    def crop(self, *args: Any) -> None:
        raise SchemeError(
            "tokens cannot be taken back", "TransformersCache", "Decode without an assistant model."
        )

    def __len__(self) -> int:
        return len(self.cache.layers)

    def __repr__(self) -> str:
        return f"TransformersCache({self.cache!r})"
