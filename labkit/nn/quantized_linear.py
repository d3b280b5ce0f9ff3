"""Linear layers that hold an int8 weight and quantize what flows into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.core.tensor import QuantizedTensor
from labkit.quantize import int8_matmul, llm_int8
from labkit.quantize.activation import ActivationQuantizer


class QuantizedLinear(nn.Module):
    """y = x @ w.T + bias with integers inside the sum (`labkit.quantize.int8_matmul`).

    Args:
        weight: symmetric codes [out, in], a scale per tensor or per output channel.
        activation: turns the input into integers: `activation.Dynamic` or `activation.Static`.
        bias: floating point [out], or None.

    The input is floating point [..., in]; the output has its dtype. Raises what the parts raise.
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        activation: ActivationQuantizer,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.quantized = weight
        self.activation = activation
        self.bias = bias

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        y = int8_matmul.linear(self.activation(x), self.quantized, self.bias)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.quantized!r}, {self.activation}"


class LLMInt8Linear(nn.Module):
    """y = x @ w.T + bias by `labkit.quantize.llm_int8`: loud columns apart, in floating point.

    Args:
        weight: int8 codes [out, in] as `llm_int8.quantize` gives them.
        bias: floating point [out], or None.
        threshold: |x| from which a column of the input counts as loud.

    `outliers` and `columns` count, over all calls, the loud columns and all of them. Where they
    are equal nothing is computed in integers: the threshold is too low for this layer.
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None = None,
        threshold: float = llm_int8.THRESHOLD,
    ) -> None:
        super().__init__()
        self.quantized = weight
        self.bias = bias
        self.threshold = threshold
        self.outliers = 0
        self.columns = 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.outliers += len(llm_int8.outlier_columns(x, self.threshold))
        self.columns += x.shape[-1]
        return llm_int8.linear(x, self.quantized, self.bias, threshold=self.threshold).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.quantized!r}, threshold={self.threshold}"
