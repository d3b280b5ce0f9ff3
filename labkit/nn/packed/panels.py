"""GGUF blocks with the rows of a panel side by side: with this form a CPU is fastest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.kernels import GgufPanels, panel_linear
from labkit.kernels.gguf_panels import HALF_FIRST, ROWS
from labkit.nn.packed.form import Form, Index
from labkit.nn.packed.gguf import GgufForm


@dataclass(frozen=True, eq=False)
class PanelsForm(Form):
    """A `GgufPanels`: the file's bytes, in another order, which is the file's on another device."""

    weight: GgufPanels
    kind = "gguf panels"
    activations = (8, 16)

    @classmethod
    def fits(cls, form: GgufForm) -> bool:
        """Whether there are panels for its type, where it is."""
        return form.type_name in HALF_FIRST and form.device.type == "cpu"

    @classmethod
    def packed(cls, form: GgufForm) -> PanelsForm:
        """Raises SchemeError for a type that has no panels."""
        return cls(GgufPanels.from_blocks(form.blocks, form.type_name))

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        return f"{self.weight.type_name} panels"

    def parts(self) -> dict[str, Tensor]:
        return {"data": self.weight.data}

    def settings(self) -> dict[str, object]:
        return {"type_name": self.weight.type_name, "shape": list(self.weight.shape)}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> PanelsForm:
        shape = torch.Size(settings["shape"])
        return cls(GgufPanels(parts["data"], settings["type_name"], shape))

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return panel_linear(x, self.weight, bias, activation_bits=activation_bits)

    def elsewhere(self) -> Form:
        return GgufForm(self.weight.blocks(), self.weight.type_name)

    def rows(self, index: Index) -> Tensor:
        rows, columns = self.shape
        wanted = torch.arange(rows)[index]
        panels, place = torch.unique(wanted // ROWS, return_inverse=True)
        data = self.weight.data[panels]
        part = GgufPanels(data, self.weight.type_name, torch.Size((len(data) * ROWS, columns)))
        blocks = part.blocks()[place * ROWS + wanted % ROWS]
        return GgufForm(blocks, self.weight.type_name).dequantize()
