"""A linear layer with an FP8 weight that rounds what flows into it to FP8 as well."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from labkit.core.float8_tensor import Float8Tensor
from labkit.quantize.float8_activation import quantize_float8


class Float8Linear(nn.Module):
    """y = (x codes @ weight codes.T) * x scale * weight scale + bias, summed in float32.

    Both operands of the product are E4M3 numbers, as a chip with FP8 multipliers reads them.

    Args:
        weight: [out, in], one scale or one for each output.
        activations: "token" or "tensor": a scale from the x at hand. With `scale` it is not used.
        bias: floating point [out], or None.
        scale: a static scale from calibration, absmax / 448; what is beyond it is clipped.
    """

    def __init__(
        self,
        weight: Float8Tensor,
        activations: Literal["token", "tensor"] = "token",
        bias: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.activations, self.bias, self.scale = weight, activations, bias, scale

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        codes, scale = quantize_float8(x, self.activations, self.scale)
        y = codes.float() @ self.weight.codes.float().T
        y = y * scale * self.weight.scale.float().T
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        kind = "static" if self.scale is not None else self.activations
        return f"E4M3 {tuple(self.weight.shape)}, activations E4M3 per {kind}"
