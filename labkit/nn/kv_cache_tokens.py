"""A cache in 8 bits, int8 or FP8 (E4M3), with a scale for each token and head.

A token's scale is known as soon as the token is, so nothing that was written is ever touched again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.float8_tensor import FP8
from labkit.kernels import decode_attention, quantize_tokens
from labkit.nn.kv_cache_layer import CacheLayer
from labkit.quantize.float8_activation import quantize_float8


class TokenLayer(CacheLayer):
    """8-bit codes and a float32 scale for every [batch, kv_head, token].

    Args:
        dtype: torch.int8 or torch.float8_e4m3fn.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(batch, kv_heads, capacity, dim)
        self.dtype = dtype
        for name in ("keys", "values"):
            self.allocate(name, self.shape, dtype, device)
            self.allocate(f"{name}_scale", self.shape[:3], torch.float32, device)

    def append(self, keys: Tensor, values: Tensor) -> None:
        # Both are quantized before either is written: a bad value must not leave half a token.
        parts = {"keys": self._quantize(keys), "values": self._quantize(values)}
        end = self.length + keys.shape[2]
        for name, (codes, scale) in parts.items():
            self.buffers[name][:, :, self.length : end] = codes
            self.buffers[f"{name}_scale"][:, :, self.length : end] = scale.squeeze(-1)
        self.length = end

    def keys(self) -> Tensor:
        return self._dequantize("keys")

    def values(self) -> Tensor:
        return self._dequantize("values")

    def attend(self, query: Tensor, softmax_scale: float) -> Tensor:
        lengths = torch.full((self.shape[0],), self.length, dtype=torch.int64, device=query.device)
        parts = (self.buffers[name] for name in ("keys", "values", "keys_scale", "values_scale"))
        return decode_attention(query, *parts, lengths, softmax_scale=softmax_scale)

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return quantize_float8(x) if self.dtype == FP8 else quantize_tokens(x)

    def _dequantize(self, name: str) -> Tensor:
        codes = self.buffers[name][:, :, : self.length].float()
        return codes * self.buffers[f"{name}_scale"][:, :, : self.length, None]
