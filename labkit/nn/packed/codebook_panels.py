"""NF4 and FP4 with rows side by side: with this form a CPU is fastest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labkit.kernels import CodebookPanels
from labkit.nn.packed.codebook import CodebookForm, magnitudes, restored
from labkit.nn.packed.form import Form, Index


@dataclass(frozen=True, eq=False)
class CodebookPanelsForm(CodebookForm):
    """The same of a CodebookPanels; on another device than a CPU it becomes a CodebookTensor."""

    weight: CodebookPanels
    kind = "codebook panels"

    def parts(self) -> dict[str, Tensor]:
        return {"codes": self.weight.codes, **magnitudes(self.weight.absmax)}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> CodebookPanelsForm:
        return cls(CodebookPanels(parts["codes"], **restored(parts, settings)))

    def elsewhere(self) -> Form:
        return CodebookForm(self.weight.rows())

    def rows(self, index: Index) -> Tensor:
        return self.weight.rows(index).dequantize()
