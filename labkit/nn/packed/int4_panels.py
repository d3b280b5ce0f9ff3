"""4-bit integers with scales, rows side by side: with this form a CPU is fastest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labkit.core.tensor import QuantizedTensor
from labkit.kernels import Int4Panels
from labkit.nn.packed.form import Form, Index
from labkit.nn.packed.int4 import Int4Form


@dataclass(frozen=True, eq=False)
class Int4PanelsForm(Int4Form):
    """The same of an Int4Panels; on another device than a CPU it becomes an Int4Weight."""

    weight: Int4Panels
    kind = "int4 panels"

    @classmethod
    def packed(cls, weight: QuantizedTensor) -> Int4PanelsForm:
        """Raises what `Int4Weight.from_quantized` raises."""
        return cls(Int4Panels.from_rows(Int4Form.packed(weight).weight))

    def settings(self) -> dict[str, object]:
        return {"shape": list(self.weight.shape)}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> Int4PanelsForm:
        return cls(Int4Panels(**{"zero_point": None, **parts}, shape=settings["shape"]))

    def elsewhere(self) -> Form:
        return Int4Form(self.weight.rows())

    def rows(self, index: Index) -> Tensor:
        return self.weight.rows(index).dequantize()
