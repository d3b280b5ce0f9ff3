"""Layers that compute with rounded numbers while they are trained.

    y = input_quant(x) @ weight_quant(W).T + bias

A layer *is* the layer that it replaces (a subclass, with the very same parameters), so names, tied
weights and everything that walks a model stay as they were. The bias is never rounded: at run time
it is added in 32 bits. What rounds is any of `FakeQuant`, `LearnedScale` and `LearnedClip`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.core.errors import SchemeError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor


class Rounder(Protocol):
    """What `FakeQuant`, `LearnedScale` and `LearnedClip` have in common."""

    scheme: QuantScheme
    place: str  # for errors: its name in the model, once `prepare` has given it one

    def __call__(self, x: Tensor) -> Tensor: ...

    def qparams(self) -> tuple[Tensor, Tensor]: ...

    def quantized(self, x: Tensor) -> QuantizedTensor: ...

    def require_ready(self) -> None: ...


class QatLinear(nn.Linear):
    """A linear layer with rounded weights, and rounded inputs and outputs if asked for.

    Args:
        weight_quant: rounds the weight [out, in].
        input_quant: rounds the input [..., in]; None to leave it.
        output_quant: rounds the output [..., out], as a quantized KV cache does; None to leave it.
    """

    weight_quant: nn.Module
    input_quant: nn.Module | None
    output_quant: nn.Module | None

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        weight_quant: nn.Module,
        input_quant: nn.Module | None = None,
        output_quant: nn.Module | None = None,
    ) -> QatLinear:
        """The layer with the same parameters; GPT-2's `Conv1D` [in, out] gets its own, turned."""
        turned = type(layer).__name__ == "Conv1D"
        weight = nn.Parameter(layer.weight.detach().T.contiguous()) if turned else layer.weight
        rows, columns = weight.shape
        new = cls(columns, rows, layer.bias is not None, device="meta")
        new.weight, new.bias = weight, layer.bias
        new.weight_quant, new.input_quant = weight_quant, input_quant
        new.output_quant = output_quant
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]. Raises what the quantizers raise."""
        if self.input_quant is not None:
            x = self.input_quant(x)
        y = functional.linear(x, self.weight_quant(self.weight), self.bias)
        return y if self.output_quant is None else self.output_quant(y)


class QatEmbedding(nn.Embedding):
    """An embedding whose table [vocabulary, width] is rounded."""

    weight_quant: nn.Module

    @classmethod
    def from_float(cls, layer: nn.Embedding, weight_quant: nn.Module) -> QatEmbedding:
        """The layer with the same table.

        Raises:
            SchemeError: a layer that changes its table as it looks it up (max_norm).
        """
        if layer.max_norm is not None:
            raise SchemeError("max_norm rescales the table in place", where="QatEmbedding")
        new = cls(*layer.weight.shape, padding_idx=layer.padding_idx, device="meta")
        new.weight, new.weight_quant = layer.weight, weight_quant
        return new.train(layer.training)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] to [..., width]."""
        return functional.embedding(ids, self.weight_quant(self.weight), self.padding_idx)


class QatConv2d(nn.Conv2d):
    """A convolution with rounded weights [out, in / groups, kh, kw], and rounded inputs."""

    weight_quant: nn.Module
    input_quant: nn.Module | None

    @classmethod
    def from_float(
        cls, layer: nn.Conv2d, weight_quant: nn.Module, input_quant: nn.Module | None = None
    ) -> QatConv2d:
        """The layer with the same parameters.

        Raises:
            SchemeError: scales that cannot leave the sum: a weight by group or token, or an input
                other than by tensor (one scale for all places that a kernel sees).
        """
        require_convolvable(weight_quant, input_quant)
        new = convolution_like(layer, cls)
        new.weight, new.bias = layer.weight, layer.bias
        new.weight_quant, new.input_quant = weight_quant, input_quant
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] to [batch, out, ...]."""
        if self.input_quant is not None:
            x = self.input_quant(x)
        return self._conv_forward(x, self.weight_quant(self.weight), self.bias)


Convolution = TypeVar("Convolution", bound=nn.Conv2d)


def convolution_like(
    layer: nn.Conv2d, kind: type[Convolution], bias: bool | None = None
) -> Convolution:
    """A convolution of the same shape, stride and padding, its parameters still without memory.

    Args:
        bias: whether it has one; None for as `layer` has it.
    """
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None if bias is None else bias,
        layer.padding_mode,
        device="meta",
    )


def require_convolvable(weight_quant: Rounder, input_quant: Rounder | None) -> None:
    """Return if a convolution can be computed in these schemes. Raises SchemeError."""
    wrong = weight_quant.scheme.granularity not in ("tensor", "channel")
    if wrong or (input_quant is not None and input_quant.scheme.granularity != "tensor"):
        inputs = "" if input_quant is None else f", inputs in {input_quant.scheme}"
        raise SchemeError(
            f"weights in {weight_quant.scheme}{inputs}",
            where="convolution",
            remedy='Weights by "tensor" or "channel", inputs by "tensor".',
        )


def rounders(model: nn.Module) -> dict[str, nn.Module]:
    """Everything in a model that rounds, by its full name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "require_ready") and isinstance(module, nn.Module)
    }


@torch.no_grad()
def exported_weight(layer: nn.Module) -> QuantizedTensor:
    """The integers of a layer's weight. Raises CalibrationError for an untrained observer."""
    return layer.weight_quant.quantized(layer.weight)
