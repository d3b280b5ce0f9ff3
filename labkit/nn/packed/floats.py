"""Weights that nobody quantized, kept in the 16 bits that they came in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.kernels import checks
from labkit.nn.packed.form import Form, Index, by_tiles


@dataclass(frozen=True, eq=False)
class FloatForm(Form):
    """A matrix [out, in] in float16, bfloat16 or float32.

    Raises:
        SchemeError: another dtype.
        ShapeError: not a matrix.
    """

    weight: Tensor
    kind = "float"

    def __post_init__(self) -> None:
        checks.require_dtype("weight", self.weight, checks.DTYPES, "FloatForm")
        if self.weight.ndim != 2:
            raise ShapeError(
                f"weight has shape {tuple(self.weight.shape)}", "FloatForm", "Expected [out, in]."
            )

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        return str(self.weight.dtype).removeprefix("torch.")

    def parts(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def settings(self) -> dict[str, object]:
        return {}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> FloatForm:
        return cls(parts["weight"])

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        if x.dtype != self.weight.dtype:
            return by_tiles(x, self, bias)
        bias = None if bias is None else bias.to(x.dtype)
        return torch.nn.functional.linear(x.detach(), self.weight, bias)

    def rows(self, index: Index) -> Tensor:
        return self.weight[index].to(torch.float32)
