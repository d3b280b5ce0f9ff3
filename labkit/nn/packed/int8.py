"""8-bit integers for 8-bit inputs: the kernels' panels (`labkit.kernels.Int8Weight`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.kernels import Int8Weight, int8_linear, quantize_tokens
from labkit.kernels.int8_weight import OFFSET, PANEL
from labkit.nn.packed.form import Form, Index, by_tiles


@dataclass(frozen=True, eq=False)
class Int8Form(Form):
    """An Int8Weight. With 16-bit activations its rows are decoded tile by tile."""

    weight: Int8Weight
    kind = "int8"
    activations = (8, 16)

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        return "int8 sym channel"

    def parts(self) -> dict[str, Tensor]:
        return {"codes": self.weight.codes, "scale": self.weight.scale}

    def settings(self) -> dict[str, object]:
        return {"shape": list(self.weight.shape)}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> Int8Form:
        return cls(Int8Weight(**parts, shape=torch.Size(settings["shape"])))

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        if activation_bits == 16:
            return by_tiles(x, self, bias)
        return int8_linear(*quantize_tokens(x), self.weight, bias, dtype=x.dtype)

    def rows(self, index: Index) -> Tensor:
        rows, columns = self.shape
        wanted = torch.arange(rows, device=self.device)[index]
        panels = self.weight.codes.permute(0, 2, 1, 3)  # [panel, output, step, byte]
        codes = panels[wanted // PANEL, wanted % PANEL].reshape(len(wanted), -1)[:, :columns]
        return (codes.to(torch.float32) - OFFSET) * self.weight.scale[wanted, None]
