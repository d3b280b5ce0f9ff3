"""What happens to the inputs of a layer before they meet its weight: the A8 of W8A8.

A checkpoint states it, and a reader must do it, or it runs another model than was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from labkit.core import affine
from labkit.core.errors import SchemeError
from labkit.core.float8_tensor import FP8_MAX, to_float8
from labkit.core.granularity import block_range
from labkit.core.scheme import QuantScheme


@dataclass(frozen=True, eq=False)
class InputQuantization:
    """Symmetric 8-bit inputs.

    Args:
        kind: "int" (INT8, -128 .. 127) or "float" (FP8 E4M3).
        granularity: one scale for each "token" (the last axis), or for the whole "tensor".
        scale: one floating-point number, measured on calibration data; None when it is taken anew
            from every input ("token" always is).

    Raises:
        SchemeError: a scale for each token that is not taken anew, or more than one scale.
    """

    kind: Literal["int", "float"]
    granularity: Literal["token", "tensor"] = "token"
    scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and (self.granularity == "token" or self.scale.numel() != 1):
            raise SchemeError(
                f"{self.scale.numel()} scales for inputs by {self.granularity}",
                remedy="A scale that is known beforehand is one number for the whole tensor.",
            )

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., features] rounded to the grid: what the layer computes with, in x's dtype.

        Raises:
            NonFiniteError: x holds NaN or infinity.
        """
        if x.numel() == 0:
            return x
        scale = self._scale(x)
        if self.kind == "int":
            rounded = affine.dequantize(self._integers(x, scale), scale, 0)
        else:
            rounded = to_float8(x.to(torch.float32) / scale).to(torch.float32) * scale
        return rounded.to(x.dtype)

    def codes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `apply` rounds to, as integers: int8 of x's shape, and a float32 scale [..., 1].

        Raises:
            NonFiniteError: x holds NaN or infinity.
            SchemeError: they are not integers.
        """
        if self.kind != "int":
            raise SchemeError("FP8 inputs have no integer codes", remedy="Use apply.")
        scale = self._scale(x)
        codes = self._integers(x, scale).to(torch.int8)
        return codes, scale.expand(*x.shape[:-1], 1).contiguous()

    def _scale(self, x: torch.Tensor) -> torch.Tensor:
        """float32, one for each token or one: it broadcasts against x."""
        if self.scale is not None:
            return self.scale.to(x.device, torch.float32).reshape(())
        low, high = block_range(x, _scheme(self.granularity))
        if self.kind == "int":
            return affine.choose_qparams(low, high, 8, True, narrow_range=False)[0]
        reach = torch.maximum(-low, high).clamp(min=0).to(torch.float32)
        return torch.where(reach == 0, torch.ones_like(reach), reach / FP8_MAX)

    def _integers(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        scheme = _scheme(self.granularity)
        return affine.quantize(x, scale, 0, scheme.qmin, scheme.qmax)


def _scheme(granularity: Literal["token", "tensor"]) -> QuantScheme:
    return QuantScheme(8, True, granularity, narrow_range=False)
