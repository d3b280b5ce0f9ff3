"""A cache in 4 bits: keys share a range along tokens, values along a token's own numbers.

Keys have channels that are large in every token, values have none: so a key's channel gets its own
range over a run of tokens, and a value's group of channels gets its own in every token. A run must
be full before its range is known; until then its keys wait in float16.
Source: Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
arXiv 2402.02750, sections 3.2 and 3.3. (KIVI also keeps the newest values in float16; here they
are quantized at once.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import NonFiniteError
from labkit.nn.kv_cache_attention import attend_floats
from labkit.nn.kv_cache_layer import CacheLayer, to_float16

RUN = 32  # tokens that share a range in keys, and channels that share one in values
_LEVELS = 15


class GroupLayer(CacheLayer):
    """4-bit codes, two to a byte, and a float16 step and minimum for every run or group.

    `dim` must be even, and a multiple of the group (32, or `dim` where that is smaller).
    """

    def __init__(
        self, batch: int, kv_heads: int, capacity: int, dim: int, device: torch.device
    ) -> None:
        super().__init__(batch, kv_heads, capacity, dim)
        head = (batch, kv_heads)
        self.group, whole = min(RUN, dim), capacity // RUN
        self.allocate("keys", (*head, whole * RUN, dim // 2), torch.uint8, device)
        self.allocate("values", (*head, capacity, dim // 2), torch.uint8, device)
        for part in ("step", "minimum"):
            self.allocate(f"keys_{part}", (*head, whole, dim), torch.float16, device)
            groups = (*head, capacity, dim // self.group)
            self.allocate(f"values_{part}", groups, torch.float16, device)
        self.allocate("newest_keys", (*head, RUN, dim), torch.float16, device)

    @property
    def _packed(self) -> int:
        """Tokens whose keys are packed: those of whole runs."""
        return self.length // RUN * RUN

    def append(self, keys: Tensor, values: Tensor) -> None:
        waiting = self.buffers["newest_keys"][:, :, : self.length - self._packed]
        keys = torch.cat([waiting, to_float16(keys, "keys")], dim=2)
        packed_values = _quantize(values.unflatten(-1, (-1, self.group)), dim=-1)
        start, first = self._packed, self.length
        self.length += values.shape[2]
        self._write("values", first, self.length, packed_values)
        ready = self._packed - start
        if ready:
            packed = _quantize(keys[:, :, :ready].unflatten(2, (ready // RUN, RUN)), dim=3)
            self._write("keys", start, self._packed, packed, per=RUN)
        rest = keys[:, :, ready:]
        self.buffers["newest_keys"][:, :, : rest.shape[2]] = rest

    def keys(self) -> Tensor:
        end = self._packed
        codes = _unpack(self.buffers["keys"][:, :, :end]).unflatten(2, (end // RUN, RUN))
        step, minimum = (
            self.buffers[f"keys_{part}"][:, :, : end // RUN, None].float()
            for part in ("step", "minimum")
        )
        newest = self.buffers["newest_keys"][:, :, : self.length - end].float()
        return torch.cat([(codes * step + minimum).flatten(2, 3), newest], dim=2)

    def values(self) -> Tensor:
        codes = _unpack(self.buffers["values"][:, :, : self.length])
        step, minimum = (
            self.buffers[f"values_{part}"][:, :, : self.length, :, None].float()
            for part in ("step", "minimum")
        )
        return (codes.unflatten(-1, (-1, self.group)) * step + minimum).flatten(-2)

    def attend(self, query: Tensor, softmax_scale: float) -> Tensor:
        return attend_floats(query, self.keys(), self.values(), softmax_scale)

    def _write(
        self, name: str, start: int, end: int, parts: tuple[Tensor, ...], per: int = 1
    ) -> None:
        codes, step, minimum = parts
        shape = self.buffers[name].shape
        flat = codes.reshape(*shape[:2], end - start, self.shape[3])
        self.buffers[name][:, :, start:end] = flat[..., 0::2] | (flat[..., 1::2] << 4)
        rows = slice(start // per, end // per)
        self.buffers[f"{name}_step"][:, :, rows] = step
        self.buffers[f"{name}_minimum"][:, :, rows] = minimum


def _quantize(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 … 15 of x's shape, and the step and minimum of each block along `dim`, float16."""
    x = x.detach().float()
    minimum, most = x.amin(dim=dim, keepdim=True), x.amax(dim=dim, keepdim=True)
    half = minimum.to(torch.float16)
    step = ((most - half.float()) / _LEVELS).to(torch.float16)
    if not bool((step.isfinite() & half.isfinite()).all()):
        raise NonFiniteError(
            f"a block reaches from {float(minimum.min()):g} to {float(most.max()):g}",
            "KVCache, int4",
            "Its step and minimum must fit float16; look for NaN, or choose int8 or fp8.",
        )
    divisor = torch.where(step > 0, step, torch.ones_like(step)).float()
    codes = ((x - half.float()) / divisor).round_().clamp_(0, _LEVELS)
    return codes.to(torch.uint8), step.squeeze(dim), half.squeeze(dim)


def _unpack(packed: Tensor) -> Tensor:
    """Bytes [..., dim / 2] to float32 codes [..., dim]; the low half of a byte comes first."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).float()
