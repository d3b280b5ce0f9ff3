"""Keys and values in pages: attention that looks up where each token lies."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.nn.kv_cache_attention import attend_floats
from labkit.nn.kv_cache_layer import to_float16
from labkit.nn.paged_pool import PagePool
from labkit.nn.paged_tables import PageTables


class PagedCache:
    """One layer's keys and values in float16, [slots, kv_heads, head_dim], for many sequences.

    A toy: a server's kernel reads the pages where they lie, this one gathers them first.
    Raises SchemeError for sizes below 1.
    """

    def __init__(self, pages: int, page_size: int, kv_heads: int, head_dim: int) -> None:
        self.tables = PageTables(PagePool(pages), page_size)
        self.memory = torch.zeros(2, pages * page_size, kv_heads, head_dim, dtype=torch.float16)

    def append(self, name: Hashable, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values [kv_heads, tokens, head_dim] behind what a sequence holds.

        Raises:
            ShapeError: other shapes.
            NonFiniteError: what float16 cannot hold.
            PoolError: an unknown sequence, or too few free pages; nothing is kept then.
        """
        kv_heads, dim = self.memory.shape[2:]
        for what, part in (("keys", keys), ("values", values)):
            if part.ndim != 3 or (part.shape[0], part.shape[2]) != (kv_heads, dim):
                raise ShapeError(
                    f"{what} have shape {tuple(part.shape)}",
                    "PagedCache",
                    f"Expected [{kv_heads}, tokens, {dim}].",
                )
        if keys.shape != values.shape:
            raise ShapeError("keys and values differ in tokens", "PagedCache", "Append pairs.")
        both = torch.stack([to_float16(keys, "keys"), to_float16(values, "values")])
        extension = self.tables.extend(name, keys.shape[1])
        size = self.tables.page_size
        for old, new in extension.copies:
            source = self.memory[:, old * size : (old + 1) * size]
            self.memory[:, new * size : (new + 1) * size] = source
        self.memory[:, extension.slots] = both.transpose(1, 2)

    def attend(self, name: Hashable, query: Tensor) -> Tensor:
        """Attention of one token [heads, head_dim] over a sequence; the same shape and dtype.

        Raises PoolError for an unknown sequence, ShapeError for one without tokens.
        """
        slots = self.tables.slots(name)
        if not slots:
            raise ShapeError("no token is held", f"sequence {name!r}", "Append one first.")
        keys, values = self.memory[:, slots].transpose(1, 2)
        factor = query.shape[-1] ** -0.5
        return attend_floats(query[None], keys[None], values[None], factor)[0]
