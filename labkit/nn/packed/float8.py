"""FP8 (`labkit.core.float8_tensor.Float8Tensor`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.float8_tensor import FP8, Float8Tensor
from labkit.kernels import fp8_linear
from labkit.nn.packed.form import Form, Index


@dataclass(frozen=True, eq=False)
class Float8Form(Form):
    """A Float8Tensor [out, in]."""

    weight: Float8Tensor
    kind = "float8"

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        return f"fp8 {'tensor' if len(self.weight.scale) == 1 else 'channel'}"

    def parts(self) -> dict[str, Tensor]:
        return {"codes": self.weight.codes, "scale": self.weight.scale}

    def settings(self) -> dict[str, object]:
        return {}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> Float8Form:
        return cls(Float8Tensor(parts["codes"], parts["scale"]))

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return fp8_linear(x, self.weight, bias)

    def rows(self, index: Index) -> Tensor:
        scale = self.weight.scale
        codes = self.weight.codes.view(torch.uint8)[index].view(FP8)
        return codes.to(torch.float32) * (scale if len(scale) == 1 else scale[index]).float()
