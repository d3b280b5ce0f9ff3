"""A model whose linear layers multiply integers: W8A8 per tensor or token, and LLM.int8().

The copy really computes `labkit.quantize.int8_matmul` in every linear layer of its blocks (the
embedding, norms, attention scores and head stay in floating point), so its perplexity is that of
the integers, activations included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError, LabkitError, SchemeError
from labkit.core.observers import MinMaxObserver, Observer
from labkit.core.scheme import QuantScheme
from labkit.models.walking import linear_layers, weight_matrix
from labkit.nn.quantized_linear import LLMInt8Linear, QuantizedLinear
from labkit.quantize import llm_int8, rtn
from labkit.quantize.activation import ActivationQuantizer, Dynamic, calibrated

Activations = Literal["static", "dynamic", "token"]
_BATCH = 8
W8 = QuantScheme(8, symmetric=True, granularity="channel")


def with_quantized_activations(
    model: nn.Module,
    activations: Activations = "token",
    *,
    weight_scheme: QuantScheme = W8,
    bits: int = 8,
    symmetric: bool = True,
    calibration: Tensor | None = None,
    observer: Callable[[], Observer] = MinMaxObserver,
) -> nn.Module:
    """A copy of `model` with integer weights and activations in every linear layer of its blocks.

    Args:
        activations: "static": one scale for each layer, from `calibration` (int64 [sequences,
            length]) through an `observer`; "dynamic": one for the tensor at hand; "token": one
            for each token at hand.
        weight_scheme: symmetric, per tensor or channel.
        bits, symmetric: of the activations.

    Raises:
        CalibrationError: static without calibration data.
        LabkitError: what a layer raises, with its name in a note.
    """
    layers = linear_layers(model)
    if activations == "static":
        if calibration is None or calibration.numel() == 0:
            raise CalibrationError(
                "static activations need data to read their ranges from",
                where=type(model).__name__,
                remedy='Pass calibration=token ids [sequences, length], or use "token".',
            )
        scheme = QuantScheme(bits, symmetric, "tensor")
        quantizers: dict[str, ActivationQuantizer] = {
            name: calibrated([], scheme, seen)
            for name, seen in observe_inputs(model, calibration, observer).items()
        }
    else:
        granularity = "token" if activations == "token" else "tensor"
        dynamic = Dynamic(QuantScheme(bits, symmetric, granularity))
        quantizers = dict.fromkeys(layers, dynamic)

    def build(name: str, layer: nn.Module) -> nn.Module:
        weight = rtn.quantize(weight_matrix(layer), weight_scheme, scale_dtype=torch.float32)
        return QuantizedLinear(weight, quantizers[name], layer.bias)

    return replace_linears(model, build)


def with_llm_int8(
    model: nn.Module, threshold: float | Mapping[str, float] = llm_int8.THRESHOLD
) -> nn.Module:
    """A copy of `model` whose linear layers run LLM.int8().

    `threshold`: one for all layers, or one for each by its full name. What it splits off is seen
    when the model runs: `float_shares` tells afterwards.

    Raises SchemeError for a layer without a threshold; what a layer raises, its name in a note.
    """

    def build(name: str, layer: nn.Module) -> nn.Module:
        own = threshold.get(name) if isinstance(threshold, Mapping) else threshold
        if own is None:
            raise SchemeError("no threshold", where=name, remedy="Give one for each linear layer.")
        return LLMInt8Linear(llm_int8.quantize(weight_matrix(layer)), layer.bias, own)

    return replace_linears(model, build)


def float_shares(model: nn.Module) -> dict[str, float]:
    """The share of columns, 0 to 1, that each LLM.int8() layer multiplied in floating point so far.

    1.0 says that nothing was left for int8: raise that layer's threshold. Layers that have not run
    are left out.
    """
    return {
        name: module.outliers / module.columns
        for name, module in model.named_modules()
        if isinstance(module, LLMInt8Linear) and module.columns
    }


@torch.no_grad()
def observe_inputs(
    model: nn.Module, calibration: Tensor, observer: Callable[[], Observer] = MinMaxObserver
) -> dict[str, Observer]:
    """One observer for each linear layer, having seen its inputs over `calibration`.

    `calibration`: int64 [sequences, length]; sequences go through a few at a time, and only the
    observers' summaries are kept. Raises NonFiniteError.
    """
    observers = {name: observer() for name in linear_layers(model)}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, seen=observers[name]: seen.observe(args[0]))
        for name, layer in linear_layers(model).items()
    ]
    try:
        device = next(model.parameters()).device
        for rows in calibration.reshape(-1, calibration.shape[-1]).split(_BATCH):
            model(input_ids=rows.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return observers


def replace_linears(model: nn.Module, build: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A copy of `model` in which every linear layer of the blocks is `build(name, layer)`."""
    changed = copy.deepcopy(model)
    for name, layer in linear_layers(changed).items():
        try:
            replacement = build(name, layer)
        except LabkitError as error:
            error.add_note(f"in layer {name}")
            raise
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, replacement)
    return changed
