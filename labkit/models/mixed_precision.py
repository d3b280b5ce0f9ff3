"""A classifier in several precisions: rounded doubles of its layers, swapped in by choice.

Weights are rounded to nearest and held as the floats that the integers stand for: what is measured
is the rounding, with torch's own float kernels. Sizes are those of the integers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError, LabkitError, ModelError
from labkit.core.observers import MinMaxObserver, Observer
from labkit.core.scheme import QuantScheme
from labkit.models.text_classifier import TextBatch
from labkit.models.walking import linear_layers
from labkit.quantize import rtn
from labkit.quantize.activation import ActivationQuantizer, calibrated
from labkit.quantize.mixed import Option

# choice -> scheme of the weight; None is float16.
CHOICES: dict[str, QuantScheme | None] = {
    "int4": QuantScheme(4, True, "channel"),
    "int8": QuantScheme(8, True, "channel"),
    "fp16": None,
}
A8 = QuantScheme(8, False, "tensor")

Double = tuple[nn.Module, int]  # the layer to swap in, the bytes of its weight


class RoundedInput(nn.Module):
    """A layer whose input [..., in] is rounded first."""

    def __init__(self, layer: nn.Module, activation: ActivationQuantizer) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.activation(x).dequantize())


def choosable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The table of word pieces, then every linear layer of the blocks, by name.

    The table counts: in a small encoder it holds more than half of all weights. The head stays
    out: a few thousand numbers, and the last to speak.
    """
    table = model.get_input_embeddings()
    names = {name: module for name, module in model.named_modules() if module is table}
    return {**names, **linear_layers(model)}


def doubles_of(layer: nn.Module, choices: Mapping[str, QuantScheme | None] = CHOICES):
    """choice -> `Double` of a linear layer or a table.

    Raises:
        NonFiniteError, GroupSizeError, SchemeError: what `labkit.quantize.rtn` raises.
    """
    return {choice: _double(layer, scheme) for choice, scheme in choices.items()}


def all_doubles(
    model: nn.Module, choices: Mapping[str, QuantScheme | None] = CHOICES
) -> dict[str, dict[str, Double]]:
    """layer -> choice -> `Double`, for all of `choosable_layers`. Errors name the layer."""
    found = {}
    for name, layer in choosable_layers(model).items():
        try:
            found[name] = doubles_of(layer, choices)
        except LabkitError as error:
            error.add_note(f"in layer {name}")
            raise
    return found


def with_choices(
    model: nn.Module, doubles: Mapping[str, Mapping[str, Double]], choices: Mapping[str, str]
) -> nn.Module:
    """A copy of the model with the chosen double of each layer; layers not named stay exact.

    Raises:
        ModelError: a layer or a choice that there is no double of.
    """
    changed = copy.deepcopy(model)
    for name, choice in choices.items():
        if choice not in doubles.get(name, {}):
            raise ModelError(f"no double {choice!r}", f"layer {name!r}", "See all_doubles.")
        parent, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(parent), leaf, doubles[name][choice][0])
    return changed


def options_of(
    doubles: Mapping[str, Mapping[str, Double]], damages: Mapping[tuple[str, str], float]
) -> dict[str, dict[str, Option]]:
    """What `labkit.quantize.mixed.allocate` takes; damages by (layer, choice)."""
    return {
        name: {choice: Option(size, damages[name, choice]) for choice, (_, size) in row.items()}
        for name, row in doubles.items()
    }


def fixed_bytes(model: nn.Module) -> int:
    """Bytes of all that `choosable_layers` leaves out (norms, biases, positions, head), in FP16."""
    chosen = {id(layer.weight) for layer in choosable_layers(model).values()}
    return sum(2 * p.numel() for p in model.parameters() if id(p) not in chosen)


@torch.no_grad()
def observe_inputs(
    model: nn.Module,
    batches: Sequence[TextBatch],
    observer: Callable[[], Observer] = MinMaxObserver,
) -> dict[str, Observer]:
    """One observer for each linear layer of the blocks, having seen its inputs; no padding.

    Raises:
        CalibrationError: no texts.
        NonFiniteError: a state that is no number.
    """
    if not batches:
        raise CalibrationError("no calibration texts", type(model).__name__, "Give some.")
    layers = linear_layers(model)
    observers = {name: observer() for name in layers}
    real: list[Tensor] = []

    def hook(name: str):
        return lambda _, args: observers[name].observe(args[0][real[-1]])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            real.append(batch.mask.bool().to(next(model.parameters()).device))
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return observers


def static_inputs(
    model: nn.Module,
    batches: Sequence[TextBatch],
    observer: Callable[[], Observer] = MinMaxObserver,
    scheme: QuantScheme = A8,
) -> dict[str, ActivationQuantizer]:
    """A static quantizer for the input of each linear layer, from calibration texts.

    Raises:
        CalibrationError, NonFiniteError: as `observe_inputs`.
    """
    seen = observe_inputs(model, batches, observer)
    return {name: calibrated([], scheme, found) for name, found in seen.items()}


def with_static_inputs(
    model: nn.Module, quantizers: Mapping[str, ActivationQuantizer]
) -> nn.Module:
    """A copy whose named layers round their inputs; weights stay as they are."""
    changed = copy.deepcopy(model)
    for name, quantizer in quantizers.items():
        parent, _, leaf = name.rpartition(".")
        layer = changed.get_submodule(name)
        setattr(changed.get_submodule(parent), leaf, RoundedInput(layer, quantizer))
    return changed


@torch.no_grad()
def _double(layer: nn.Module, scheme: QuantScheme | None) -> Double:
    if scheme is None:
        weight, size = layer.weight.half().float(), 2 * layer.weight.numel()
    else:
        rounded = rtn.quantize(layer.weight, scheme)
        weight, size = rounded.dequantize(), rounded.nbytes
    new = copy.copy(layer)  # the same module otherwise: bias, padding, mode
    new._parameters = {**layer._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    return new.eval(), size
