"""QuantLinear: a linear layer that holds packed bytes, and calls the kernel that reads them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from labkit.core.errors import SchemeError, ShapeError
from labkit.formats.inputs import InputQuantization
from labkit.nn.packed.choose import Packable, form_of
from labkit.nn.packed.operators import multiply, packed_linear
from labkit.nn.packed.weight import PackedWeight


class QuantLinear(nn.Module):
    """y = x @ weight.T + bias. The weight stays packed: no float copy of it is ever made.

    Args:
        weight: a `PackedWeight` (two modules may share one), or whatever `form_of` takes.
        bias: floating point [out], or None.
        activation_bits: 16: x as it is. 8: x is rounded to int8, a scale for each token, and
            products are summed in integers; types that have such a kernel alone.
        inputs: how a checkpoint rounds x first (W8A8, FP8); with 16 activation bits alone.

    x is float32, float16 or bfloat16 [..., in]; y has its dtype. A gradient flows to x, as if it
    were not rounded.

    Raises:
        SchemeError: activation bits that the type has no kernel for; another dtype or device.
        ShapeError: a bias or an x that does not fit.
    """

    def __init__(
        self,
        weight: PackedWeight | Packable,
        bias: Tensor | None = None,
        activation_bits: Literal[16, 8] = 16,
        *,
        inputs: InputQuantization | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(weight, PackedWeight):
            integers = activation_bits == 8 or (inputs is not None and inputs.kind == "int")
            weight = PackedWeight(form_of(weight, integer_inputs=integers))
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        _require_activations(weight, activation_bits, inputs)
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ShapeError(
                f"bias has shape {tuple(bias.shape)}", "QuantLinear", f"[{self.out_features}] fits."
            )
        self.activation = f"{inputs.kind} {inputs.granularity}" if inputs else str(activation_bits)
        self.register_buffer("bias", None if bias is None else bias.detach())
        scale = None if inputs is None else inputs.scale
        self.register_buffer("input_scale", None if scale is None else scale.reshape(1))

    @classmethod
    def from_quantized(
        cls, weight: Packable, bias: Tensor | None = None, activation_bits: Literal[16, 8] = 16
    ) -> QuantLinear:
        """The layer for a quantized weight, or for (GGUF blocks, type name)."""
        return cls(weight, bias, activation_bits)

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the packed weight, metadata counted."""
        return self.weight.nbytes

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return self.weight.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            parts = self.weight.parts()
            rest = (self.bias, self.activation, self.input_scale)
            return packed_linear(x, parts, self.weight.recipe, *rest)
        return multiply(self.weight.form, x, self.bias, self.activation, self.input_scale)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        scale = self.input_scale
        super()._apply(fn, recurse)
        if scale is not None:  # a cast of the model would round it
            self.input_scale = scale.to(self.input_scale.device)
        return self

    def extra_repr(self) -> str:
        inputs = f"{self.activation}-bit" if self.activation in ("16", "8") else self.activation
        bias = ", bias" if self.bias is not None else ""
        return f"in={self.in_features}, out={self.out_features}{bias}, {inputs} inputs"


def _require_activations(weight: PackedWeight, bits: int, inputs: InputQuantization | None) -> None:
    form = weight.form
    if bits not in (16, 8) or (bits == 8 and inputs is not None):
        raise SchemeError(f"activation_bits is {bits!r}", "QuantLinear", "Choose 16, or 8 alone.")
    if bits not in form.activations:
        raise SchemeError(
            f"{form.label} has no kernel for {bits}-bit activations",
            "QuantLinear",
            f"Choose {' or '.join(map(str, form.activations))}.",
        )
