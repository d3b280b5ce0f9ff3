"""KVCache: keys and values of the tokens that a model has read, in 16, 8 or 4 bits."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.float8_tensor import FP8
from labkit.nn.kv_cache_float import FloatLayer
from labkit.nn.kv_cache_groups import RUN, GroupLayer
from labkit.nn.kv_cache_layer import CacheLayer
from labkit.nn.kv_cache_tokens import TokenLayer

Kind = Literal["fp16", "int8", "fp8", "int4"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class KVCache:
    """Keys and values of every layer; memory for `capacity` tokens is taken at once.

        fp16   float16
        int8   int8, a float32 scale for each token and head
        fp8    E4M3, a float32 scale for each token and head
        int4   4 bits; keys by channel over runs of 32 tokens, values by groups of 32 in a token,
               each with a float16 step and minimum; keys of the newest run wait in float16

    Args:
        kind: one of the four.
        layers, kv_heads, head_dim: the model's. kv_heads are those of keys, not of queries.
        capacity: tokens of one sequence.
        batch: sequences, all of one length.
        device: where the memory lies; the CPU if None.

    Raises:
        SchemeError: another kind, a size below 1, or a head_dim that int4 cannot group.
    """

    def __init__(
        self,
        kind: Kind,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        batch: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = dict(
            layers=layers, kv_heads=kv_heads, head_dim=head_dim, capacity=capacity, batch=batch
        )
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise SchemeError(f"{name} is {size!r}", "KVCache", "Use a positive integer.")
        if kind not in KINDS:
            raise SchemeError(f"kind {kind!r}", "KVCache", f"Choose one of {', '.join(KINDS)}.")
        if kind == "int4" and (head_dim % 2 or head_dim % min(RUN, head_dim)):
            raise SchemeError(
                f"head_dim {head_dim} for int4",
                "KVCache",
                f"Use a multiple of {RUN}, or an even one below.",
            )
        self.kind, self.kv_heads, self.head_dim, self.capacity = kind, kv_heads, head_dim, capacity
        self.batch, self.device = batch, torch.device(device or "cpu")
        self.layers = [self._layer() for _ in range(layers)]

    @classmethod
    def for_model(cls, model: Any, kind: Kind, capacity: int, batch: int = 1) -> KVCache:
        """A cache that fits a transformers model with keys and values in every layer."""
        config = model.config
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        layers = config.num_hidden_layers
        return cls(kind, layers, kv_heads, dim, capacity, batch, device=model.device)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values [batch, kv_heads, tokens, head_dim] of the next tokens.

        Raises:
            ShapeError: other shapes, or more tokens than `capacity` leaves room for.
            NonFiniteError: NaN or infinity, or what float16 cannot hold where it must.
        """
        shape = (self.batch, self.kv_heads, keys.shape[2] if keys.ndim == 4 else 0, self.head_dim)
        for name, part in (("keys", keys), ("values", values)):
            if tuple(part.shape) != shape or not shape[2]:
                raise ShapeError(
                    f"{name} have shape {tuple(part.shape)}",
                    f"KVCache, layer {layer}",
                    f"Expected [{self.batch}, {self.kv_heads}, tokens, {self.head_dim}].",
                )
        held = self.layers[layer]
        if held.length + shape[2] > self.capacity:
            raise ShapeError(
                f"{shape[2]} tokens behind {held.length} exceed the capacity of {self.capacity}",
                f"KVCache, layer {layer}",
                "Make the cache with room for the prompt and all new tokens.",
            )
        held.append(keys, values)

    def attend(self, layer: int, query: Tensor, softmax_scale: float | None = None) -> Tensor:
        """Attention of one token [batch, heads, head_dim] over all that the layer holds.

        The same shape and dtype. `heads` is a multiple of kv_heads; softmax_scale is
        1 / sqrt(head_dim) if None. int8 and fp8 are read by `labkit.kernels.decode_attention` as
        they lie in memory; fp16 and int4 are converted to float32 first.

        Raises ShapeError for another shape, or a layer that holds nothing yet.
        """
        batch, heads, dim = query.shape if query.ndim == 3 else (0, 0, 0)
        fits = batch == self.batch and dim == self.head_dim
        if not fits or heads == 0 or heads % self.kv_heads or not self.layers[layer].length:
            raise ShapeError(
                f"query {tuple(query.shape)}, {self.layers[layer].length} tokens are held",
                f"KVCache, layer {layer}",
                f"Expected [{self.batch}, a multiple of {self.kv_heads}, {self.head_dim}], "
                "and at least one token appended.",
            )
        factor = self.head_dim**-0.5 if softmax_scale is None else softmax_scale
        return self.layers[layer].attend(query, factor)

    def keys(self, layer: int) -> Tensor:
        """float32 [batch, kv_heads, tokens, head_dim], as the cache holds them."""
        return self.layers[layer].keys()

    def values(self, layer: int) -> Tensor:
        """float32 [batch, kv_heads, tokens, head_dim], as the cache holds them."""
        return self.layers[layer].values()

    def layer_length(self, layer: int) -> int:
        """Tokens that one layer holds."""
        return self.layers[layer].length

    @property
    def length(self) -> int:
        """Tokens that every layer holds (within a step the first layers hold more)."""
        return min(held.length for held in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers: codes, scales, and what waits, for `capacity` tokens."""
        return sum(held.nbytes for held in self.layers)

    @property
    def bits_per_number(self) -> float:
        """Bits for each cached number, scales counted."""
        numbers = 2 * len(self.layers) * self.batch * self.kv_heads * self.capacity * self.head_dim
        return self.nbytes * 8 / numbers

    def select(self, rows: Tensor) -> None:
        """Keep the sequences `rows` (integers [new batch], repeats allowed), in that order."""
        for held in self.layers:
            held.select(rows)
        self.batch = len(rows)

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        for held in self.layers:
            held.length = 0

    def __repr__(self) -> str:
        return (
            f"KVCache({self.kind}, layers={len(self.layers)}, kv_heads={self.kv_heads}, "
            f"head_dim={self.head_dim}, tokens={self.length}/{self.capacity}, batch={self.batch}, "
            f"{self.nbytes} bytes)"
        )

    def _layer(self) -> CacheLayer:
        shape = (self.batch, self.kv_heads, self.capacity, self.head_dim)
        if self.kind == "fp16":
            return FloatLayer(*shape, self.device)
        if self.kind == "int4":
            return GroupLayer(*shape, self.device)
        return TokenLayer(*shape, self.device, torch.int8 if self.kind == "int8" else FP8)
