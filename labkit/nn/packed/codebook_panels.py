"""NF4 and FP4 with rows side by side: with this form a CPU is fastest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.kernels import CodebookPanels, codebook_linear
from labkit.nn.packed.codebook import CodebookForm, magnitudes, named, restored, settings_of
from labkit.nn.packed.form import Form, Index


@dataclass(frozen=True, eq=False)
class CodebookPanelsForm(Form):
    """A CodebookPanels; on another device than a CPU it becomes a CodebookTensor."""

    weight: CodebookPanels
    kind = "codebook panels"

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        return named(self.weight)

    def parts(self) -> dict[str, Tensor]:
        return {"codes": self.weight.codes, **magnitudes(self.weight.absmax)}

    def settings(self) -> dict[str, object]:
        return settings_of(self.weight)

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> CodebookPanelsForm:
        return cls(CodebookPanels(parts["codes"], **restored(parts, settings)))

    def elsewhere(self) -> Form:
        return CodebookForm(self.weight.rows())

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return codebook_linear(x, self.weight, bias)

    def rows(self, index: Index) -> Tensor:
        return self.weight.rows(index).dequantize()
