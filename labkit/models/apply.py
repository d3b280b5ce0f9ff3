"""Quantize every linear layer of a model, and keep what was decided about each.

The model that comes back computes in floating point with the dequantized weights: its outputs are
those of the integers, its memory is not. Each report holds the integers themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.core.errors import LabkitError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.models.report import LayerReport, layer_report
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import rtn

METHODS: dict[str, Callable[[Tensor, QuantScheme], QuantizedTensor]] = {"rtn": rtn.quantize}


def map_weights(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of `model` whose linear weights are `change(name, weight)`, both float [out, in]."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in linear_layers(changed).items():
            weight = weight_matrix(layer)
            weight.copy_(change(name, weight.float()).to(weight.dtype))
    return changed


def quantize_model(
    model: nn.Module, scheme: QuantScheme, method: str = "rtn"
) -> tuple[nn.Module, list[LayerReport]]:
    """Quantize all linear layers of the decoder blocks; embedding, norms and head stay as they are.

    Raises SchemeError for an unknown method, and what the method raises with the layer's name.
    """
    if method not in METHODS:
        raise SchemeError(f"no method {method!r}", remedy=f"Choose from {', '.join(METHODS)}.")
    reports: list[LayerReport] = []

    def change(name: str, weight: Tensor) -> Tensor:
        try:
            quantized = METHODS[method](weight, scheme)
        except LabkitError as error:
            error.add_note(f"in layer {name} of shape {tuple(weight.shape)}")
            raise
        restored = quantized.dequantize()
        reports.append(layer_report(name, method, weight, quantized))
        return restored

    return map_weights(model, change), reports
