"""Int8Weight: 8-bit codes in the order in which an integer dot product reads them.

VPDPBUSD multiplies four neighbouring bytes of a lane and adds them up. So four columns of an output
lie side by side, then the same four of the next output, for the 64 outputs of a *panel*:

    codes[panel, step, output, byte] = code[64 panel + output, 4 step + byte] + 128

The instruction takes one unsigned side; 128 more than the code is that. What it adds, 128 times the
sum of x, is taken off at the end. Missing outputs and columns are filled up with 128, a zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.tensor import QuantizedTensor
from labkit.kernels import checks

PANEL = 64
OFFSET = 128
# 255 * 128 * columns must fit int32.
LONGEST = 2**31 // (255 * 128)
_WHERE = "Int8Weight"


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A matrix [out, in] of symmetric 8-bit integers with a scale for each output.

    Args:
        codes: uint8 [panels, steps, 64, 4].
        scale: float32 [64 * panels], 0 for outputs that are not there.
        shape: [out, in].

    Raises:
        SchemeError: other dtypes, codes that are not contiguous, or more than 65,793 columns.
        ShapeError: parts that do not fit each other.
    """

    codes: Tensor
    scale: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        rows, columns = self.shape
        panels, steps = -(-rows // PANEL), -(-columns // 4)
        checks.require_dtype("codes", self.codes, (torch.uint8,), _WHERE)
        checks.require_dtype("scale", self.scale, (torch.float32,), _WHERE)
        checks.require_shape("codes", self.codes, (panels, steps, PANEL, 4), _WHERE)
        checks.require_shape("scale", self.scale, (panels * PANEL,), _WHERE)
        checks.require_device("scale", self.scale, self.codes.device, _WHERE)
        if not self.codes.is_contiguous() or columns > LONGEST:
            raise SchemeError(
                f"{columns} columns, codes contiguous: {self.codes.is_contiguous()}",
                _WHERE,
                f"Expected contiguous codes and at most {LONGEST} columns, so that sums fit int32.",
            )

    @classmethod
    def from_quantized(cls, weight: QuantizedTensor) -> Int8Weight:
        """Lay the codes of a weight [out, in] out; nothing is rounded but a scale beyond float32.

        Raises:
            SchemeError: asymmetric, or a scale that cannot leave the sum (not per row or tensor).
            ShapeError: not a matrix.
        """
        scheme = weight.scheme
        if not scheme.symmetric or scheme.granularity not in ("channel", "tensor"):
            raise SchemeError(
                f"a weight in {scheme}",
                _WHERE,
                "Expected a symmetric one with a scale per tensor or per output channel.",
            )
        if weight.codes.ndim != 2:
            raise ShapeError(
                f"codes have shape {tuple(weight.shape)}", _WHERE, "Expected [out, in]."
            )
        rows, columns = weight.shape
        down, right = -rows % PANEL, -columns % 4
        codes = torch.nn.functional.pad(weight.codes.to(torch.int16), (0, right, 0, down)) + OFFSET
        panels = codes.to(torch.uint8).reshape(-1, PANEL, (columns + right) // 4, 4)
        scale = weight.scale.float().reshape(-1).expand(rows)
        return cls(
            panels.transpose(1, 2).contiguous(),
            torch.nn.functional.pad(scale, (0, down)),
            weight.shape,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.codes.nbytes + self.scale.nbytes

    def rows(self) -> Tensor:
        """The codes, int8 [out, in]."""
        flat = self.codes.transpose(1, 2).reshape(self.codes.shape[0] * PANEL, -1)
        return (flat[: self.shape[0], : self.shape[1]].to(torch.int16) - OFFSET).to(torch.int8)

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return self.rows().float() * self.scale[: self.shape[0], None]

    def to(self, device: torch.device | str) -> Int8Weight:
        """Return the same weight on another device."""
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device))
