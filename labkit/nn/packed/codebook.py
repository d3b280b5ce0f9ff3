"""NF4 and FP4 as bitsandbytes has them (`labkit.core.codebook.CodebookTensor`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.kernels import codebook_linear
from labkit.nn.packed.form import Form, Index

_DTYPES = {str(d): d for d in (torch.float32, torch.float16, torch.bfloat16)}


@dataclass(frozen=True, eq=False)
class CodebookForm(Form):
    """A CodebookTensor [out, in].

    `linear` multiplies with levels[code] * absmax; `rows` rounds that to the dtype which the weight
    once had, as `CodebookTensor.dequantize` and bitsandbytes do.
    """

    weight: CodebookTensor
    kind = "codebook"

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        nested = ", double quantization" if isinstance(self.weight.absmax, NestedAbsmax) else ""
        return f"{self.weight.quant_type} block {self.weight.block_size}{nested}"

    def parts(self) -> dict[str, Tensor]:
        return {"packed": self.weight.packed, **magnitudes(self.weight.absmax)}

    def settings(self) -> dict[str, object]:
        weight = self.weight
        found: dict[str, object] = {
            "shape": list(weight.shape),
            "quant_type": weight.quant_type,
            "block_size": weight.block_size,
            "dtype": str(weight.dtype),
        }
        if isinstance(weight.absmax, NestedAbsmax):
            found["run"] = weight.absmax.block_size
        return found

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> CodebookForm:
        return cls(CodebookTensor(parts["packed"], **restored(parts, settings)))

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return codebook_linear(x, self.weight, bias)

    def rows(self, index: Index) -> Tensor:
        rows, columns = self.shape
        size = self.weight.block_size
        if columns % 2 or columns % size:  # blocks reach from one row into the next
            return self.weight.dequantize()[index]
        packed = self.weight.packed.reshape(rows, -1)[index]
        absmax = self.weight.block_absmax().reshape(rows, -1)[index]
        shape = torch.Size((len(packed), columns))
        part = replace(
            self.weight, packed=packed.reshape(-1), absmax=absmax.reshape(-1), shape=shape
        )
        return part.dequantize()


def magnitudes(absmax: Tensor | NestedAbsmax) -> dict[str, Tensor]:
    """What a form stores of them."""
    if not isinstance(absmax, NestedAbsmax):
        return {"absmax": absmax}
    offset = torch.tensor([absmax.offset], dtype=torch.float64, device=absmax.codes.device)
    nested = {"nested": absmax.codes, "absmax": absmax.absmax, "levels": absmax.levels}
    return {**nested, "offset": offset}


def restored(parts: dict[str, Tensor], settings: dict) -> dict:
    """Arguments of a weight, besides its codes, from `magnitudes` and a form's settings."""
    absmax: Tensor | NestedAbsmax = parts["absmax"]
    if "nested" in parts:
        values = (parts["nested"], parts["absmax"], parts["levels"])
        absmax = NestedAbsmax(*values, float(parts["offset"]), settings["run"])
    kinds = {name: settings[name] for name in ("quant_type", "block_size")}
    shape, dtype = torch.Size(settings["shape"]), _DTYPES[settings["dtype"]]
    return {"absmax": absmax, "shape": shape, "dtype": dtype, **kinds}
