"""4-bit integers with scales, rows side by side: with this form a CPU is fastest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.tensor import QuantizedTensor
from labkit.kernels import Int4Panels, int4_linear
from labkit.nn.packed.form import Form, Index
from labkit.nn.packed.int4 import Int4Form, named


@dataclass(frozen=True, eq=False)
class Int4PanelsForm(Form):
    """An Int4Panels; on another device than a CPU it becomes an Int4Weight."""

    weight: Int4Panels
    kind = "int4 panels"
    activations = (16, 8)

    @classmethod
    def packed(cls, weight: QuantizedTensor) -> Int4PanelsForm:
        """Raises what `Int4Weight.from_quantized` raises."""
        return cls(Int4Panels.from_rows(Int4Form.packed(weight).weight))

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        return named(self.weight)

    def parts(self) -> dict[str, Tensor]:
        named = {n: getattr(self.weight, n) for n in ("codes", "scale", "zero_point", "columns")}
        return {name: part for name, part in named.items() if part is not None}

    def settings(self) -> dict[str, object]:
        return {"shape": list(self.weight.shape)}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> Int4PanelsForm:
        return cls(Int4Panels(**{"zero_point": None, **parts}, shape=settings["shape"]))

    def elsewhere(self) -> Form:
        return Int4Form(self.weight.rows())

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return int4_linear(x, self.weight, bias, activation_bits=activation_bits)

    def rows(self, index: Index) -> Tensor:
        return self.weight.rows(index).dequantize()
