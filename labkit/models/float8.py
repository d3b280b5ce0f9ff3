"""A model whose linear layers hold FP8 weights and read FP8 activations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError, SchemeError
from labkit.core.float8_tensor import FP8_MAX, Float8Tensor
from labkit.models.activations import observe_inputs, replace_linears
from labkit.models.walking import weight_matrix
from labkit.nn.float8_linear import Float8Linear


def with_float8(
    model: nn.Module,
    activations: Literal["static", "tensor", "token"] = "token",
    *,
    weights: Literal["tensor", "channel"] = "channel",
    calibration: Tensor | None = None,
) -> nn.Module:
    """A copy of `model` with E4M3 weights and activations in every linear layer of its blocks.

    Args:
        activations: "token" or "tensor": a scale from the tensor at hand; "static": one scale for
            each layer, from the largest magnitude in `calibration` (int64 [sequences, length]).
        weights: one scale a weight, or one for each output channel.

    Raises:
        SchemeError: another choice.
        CalibrationError: static without calibration data.
    """
    if activations not in ("static", "tensor", "token"):
        raise SchemeError(f"activations {activations!r}", remedy="static, tensor or token.")
    scales: dict[str, Tensor] = {}
    if activations == "static":
        if calibration is None or not calibration.numel():
            raise CalibrationError("static scales need data", remedy="Pass calibration=token ids.")
        for name, seen in observe_inputs(model, calibration).items():
            low, high = seen.range()
            reach = torch.maximum(torch.as_tensor(low).abs(), torch.as_tensor(high).abs())
            scales[name] = (reach.float() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    kind = "tensor" if activations == "tensor" else "token"

    def build(name: str, layer: nn.Module) -> nn.Module:
        weight = Float8Tensor.quantize(weight_matrix(layer), weights)
        return Float8Linear(weight, kind, layer.bias, scales.get(name))

    return replace_linears(model, build)
