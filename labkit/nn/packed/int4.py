"""4-bit integers with scales: the kernels' own order (`labkit.kernels.Int4Weight`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.core.tensor import QuantizedTensor
from labkit.kernels import Int4Weight, int4_linear
from labkit.nn.packed.form import AT_A_TIME, Form, Index, integer_label


@dataclass(frozen=True, eq=False)
class Int4Form(Form):
    """An Int4Weight."""

    weight: Int4Weight
    kind = "int4"
    activations = (16, 8)

    @classmethod
    def packed(cls, weight: QuantizedTensor) -> Int4Form:
        """Raises what `Int4Weight.from_quantized` raises."""
        rows, columns = weight.shape
        step = max(1, AT_A_TIME // columns)
        runs = [
            _narrowed(Int4Weight.from_quantized(_run(weight, first, min(first + step, rows))))
            for first in range(0, rows, step)
        ]
        return cls(runs[0] if len(runs) == 1 else _joined(runs))

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def label(self) -> str:
        weight = self.weight
        return integer_label(4, weight.zero_point is None, weight.in_features, weight.groups)

    def parts(self) -> dict[str, Tensor]:
        return self.weight.parts()

    def settings(self) -> dict[str, object]:
        return {"chunk": self.weight.chunk, "in_features": self.weight.in_features}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> Int4Form:
        return cls(Int4Weight(**{"zero_point": None, **parts}, **settings))

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return int4_linear(x, self.weight, bias, activation_bits=activation_bits)

    def rows(self, index: Index) -> Tensor:
        zero = self.weight.zero_point
        part = replace(
            self.weight,
            codes=self.weight.codes[index],
            scale=self.weight.scale[index],
            zero_point=None if zero is None else zero[index],
        )
        return part.dequantize()


def _run(weight: QuantizedTensor, first: int, last: int) -> QuantizedTensor:
    """Some rows of it."""
    by_row = weight.scale.shape[0] == weight.shape[0]
    zero = weight.zero_point
    return replace(
        weight,
        codes=weight.codes[first:last],
        scale=weight.scale[first:last] if by_row else weight.scale,
        zero_point=zero[first:last] if zero is not None and by_row else zero,
    )


def _narrowed(weight: Int4Weight) -> Int4Weight:
    """Scales as float16 where that loses nothing, as with most bfloat16 ones."""
    half = weight.scale.to(torch.float16)
    exact = torch.equal(half.to(torch.float32), weight.scale.to(torch.float32))
    return replace(weight, scale=half) if exact else weight


def _joined(runs: list[Int4Weight]) -> Int4Weight:
    scales = [run.scale for run in runs]
    if len({scale.dtype for scale in scales}) > 1:
        scales = [scale.to(torch.float32) for scale in scales]
    zeros = [run.zero_point for run in runs if run.zero_point is not None]
    return replace(
        runs[0],
        codes=torch.cat([run.codes for run in runs]),
        scale=torch.cat(scales),
        zero_point=torch.cat(zeros) if zeros else None,
    )
