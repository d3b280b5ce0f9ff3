"""A cache in float16: what every other kind is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.nn.kv_cache_attention import attend_floats
from labkit.nn.kv_cache_layer import CacheLayer, to_float16


class FloatLayer(CacheLayer):
    """Keys and values rounded to float16, 16 bits a number."""

    def __init__(
        self, batch: int, kv_heads: int, capacity: int, dim: int, device: torch.device
    ) -> None:
        super().__init__(batch, kv_heads, capacity, dim)
        for name in ("keys", "values"):
            self.allocate(name, self.shape, torch.float16, device)

    def append(self, keys: Tensor, values: Tensor) -> None:
        end = self.length + keys.shape[2]
        self.buffers["keys"][:, :, self.length : end] = to_float16(keys, "keys")
        self.buffers["values"][:, :, self.length : end] = to_float16(values, "values")
        self.length = end

    def keys(self) -> Tensor:
        return self.buffers["keys"][:, :, : self.length].float()

    def values(self) -> Tensor:
        return self.buffers["values"][:, :, : self.length].float()

    def attend(self, query: Tensor, softmax_scale: float) -> Tensor:
        return attend_floats(query, self.keys(), self.values(), softmax_scale)
