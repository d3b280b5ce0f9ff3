"""Start training where a method without training ended: at GPTQ's codes, not the nearest ones.

The codes of GPTQ are already chosen for the layer's outputs, so training has less left to repair:
learned scales start from the stored ones, weights from the numbers that the codes stand for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from labkit.core.errors import ModelError, SchemeError
from labkit.core.quantized import Quantized
from labkit.core.tensor import QuantizedTensor
from labkit.training.layers import QatLinear
from labkit.training.lsq import LearnedScale


@torch.no_grad()
def start_from(model: nn.Module, layers: Mapping[str, Quantized]) -> None:
    """Put the layers of a prepared model, in place, at the integers of an already quantized one.

    Args:
        model: what `prepare` returned, with learned scales.
        layers: quantized weights by module name: `QuantizedModel.layers`, or of `LayerReport`s.

    Raises:
        ModelError: a layer that the model does not hold, or one without learned scales.
        SchemeError: codes in another scheme than the layer is trained in, or with columns in
            groups of their own (act-order by group), which training does not know.
    """
    for name, quantized in layers.items():
        layer = _layer(model, name)
        scheme = layer.weight_quant.scheme
        if not isinstance(quantized, QuantizedTensor) or quantized.scheme != scheme:
            raise SchemeError(
                f"codes in {getattr(quantized, 'scheme', type(quantized).__name__)}",
                where=f"layer {name}",
                remedy=f"Quantize in the scheme that is trained: {scheme}.",
            )
        if quantized.g_idx is not None:
            raise SchemeError(
                "columns in groups of their own (g_idx)",
                where=f"layer {name}",
                remedy="Quantize without act_order, or with static_groups.",
            )
        learned = layer.weight_quant
        layer.weight.copy_(quantized.dequantize())
        learned.scale.copy_(quantized.scale)
        if quantized.zero_point is not None:
            learned.zero_point.copy_(quantized.zero_point)
        learned.seen.fill_(1)


def _layer(model: nn.Module, name: str) -> QatLinear:
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, QatLinear) or not isinstance(layer.weight_quant, LearnedScale):
        raise ModelError(
            f"no layer {name!r} with learned scales",
            where=type(model).__name__,
            remedy='Prepare it with QatConfig(..., scales="learned").',
        )
    return layer
