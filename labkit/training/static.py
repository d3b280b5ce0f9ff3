"""Static post-training quantization of a convolution net: fold, calibrate, convert. No training.

    static = prepare_static(model, weights, inputs)     batch norms folded, places to round known
    calibrate(static, batches, PercentileObserver)      a range for each place, of the float net
    convert(static)                                     integers: labkit.training.convert

The same prepared net can be trained on afterwards: that is quantization-aware training, and it
starts from calibrated ranges.
Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference: A
whitepaper", sections 3.1 and 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from labkit.core.errors import LabkitError, ModelError
from labkit.core.observers import MinMaxObserver, Observer
from labkit.core.scheme import QuantScheme
from labkit.models.resnet import Stored
from labkit.training.batch_norm import QatConvBn2d, fold_batch_norm
from labkit.training.fake_quant import FakeQuant
from labkit.training.layers import QatConv2d, QatLinear, convolution_like, exported_weight
from labkit.training.prepare import QatConfig, prepare

WEIGHTS = QuantScheme(8, True, "channel")
INPUTS = QuantScheme(8, False, "tensor")

_SUFFIX = ".input_quant"
_INT32 = 2**31 - 1


def prepare_static(
    model: nn.Module,
    weights: QuantScheme = WEIGHTS,
    inputs: QuantScheme = INPUTS,
    *,
    keep: tuple[str, ...] = (),
    tell: Callable[[str], None] = print,
) -> nn.Module:
    """A copy whose convolutions and linear layers round weights and inputs, by ranges to come.

    Also the places that a net marks with `labkit.models.resnet.Stored` round: both sides of a
    residual sum. Scales are float32, as integer engines hold them.

    Raises:
        CalibrationError: a batch norm without statistics.
        SchemeError: inputs other than by tensor.
        ModelError: as `labkit.training.prepare.prepare`.
    """
    config = QatConfig(weights, inputs, scales="minmax", keep=keep, scale_dtype=torch.float32)
    prepared = prepare(model, config, tell=tell)
    for name, module in list(prepared.named_modules()):
        if isinstance(module, Stored):
            _replace(prepared, name, FakeQuant(inputs, "moving"))
    return prepared.eval()


@torch.no_grad()
def calibrate(
    prepared: nn.Module,
    batches: Iterable[Tensor],
    observer: Callable[[], Observer] = MinMaxObserver,
    image_range: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """Give each static range what `observer` says of the tensors that the *float* net shows there.

    Rounding is left out meanwhile: a range should not depend on the errors of the layers before.

    Args:
        batches: images [n, channels, height, width].
        observer: makes one for each place: a class of `labkit.core.observers`, or a partial.
        image_range: of the place that reads the images themselves, which is known beforehand; None
            to observe it too. Pixels take few values, which no histogram method is made for.

    Raises:
        CalibrationError: no images, or a place that has only seen one value (with its name).
        NonFiniteError: images or a layer's outputs that are not finite.
        ModelError: nothing in it waits for a range.
    """
    places = _places(prepared)
    if not places:
        raise ModelError(
            "no place has a static range",
            where=type(prepared).__name__,
            remedy="Calibrate what labkit.training.static.prepare_static returned.",
        )
    floating = without_rounding(prepared)
    observers = {name: observer() for name in places}
    called: list[str] = []
    with ExitStack() as hooks:
        for name, watching in observers.items():
            module = floating.get_submodule(name.removesuffix(_SUFFIX))
            hook = module.register_forward_pre_hook(_showing(name, watching, called))
            hooks.callback(hook.remove)
        for batch in batches:
            floating(batch)
    for name, quant in places.items():
        try:
            seen = observers[name].range(quant.scheme.bits, quant.scheme.symmetric)
            if image_range is not None and name == called[0]:
                seen = torch.tensor(image_range[0]), torch.tensor(image_range[1])
            quant.set_range(*seen)
            quant.require_ready()
        except LabkitError as error:
            error.add_note(f"at {name}")
            raise


def _showing(
    name: str, observer: Observer, called: list[str]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        called.append(name)
        observer.observe(inputs[0])

    return hook


def _places(model: nn.Module) -> dict[str, FakeQuant]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FakeQuant) and module.ranges == "moving"
    }


def stored_places(model: nn.Module) -> dict[str, FakeQuant]:
    """The places that round although no layer reads there, by name."""
    return {name: quant for name, quant in _places(model).items() if not name.endswith(_SUFFIX)}


def require_ranges(model: nn.Module) -> None:
    """Return if every static range is known. Raises CalibrationError with the name of the place."""
    for name, quant in _places(model).items():
        try:
            quant.require_ready()
        except LabkitError as error:
            error.add_note(f"at {name}")
            raise


def with_integer_biases(prepared: nn.Module) -> nn.Module:
    """A copy whose biases are whole multiples of s_x · s_w, as integer engines add them.

    Its layers have their batch norms folded for good: it can be converted and exported, and no
    longer be trained. The step is that of the exact sum, so a bias moves by no more than half of
    what the smallest difference of that sum is worth.

    Raises:
        CalibrationError: a range that is not known.
    """
    require_ranges(prepared)
    copied = copy.deepcopy(prepared).eval().requires_grad_(False)
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, QatConvBn2d):
            layer = layer.folded()
            _replace(copied, name, layer.eval())
        if isinstance(layer, QatConv2d | QatLinear) and layer.bias is not None:
            step = bias_step(layer)
            codes = (layer.bias.detach().double() / step).round().clamp(-_INT32, _INT32)
            layer.bias = nn.Parameter((codes * step).float(), requires_grad=False)
    return copied


def bias_step(layer: QatConv2d | QatLinear) -> Tensor:
    """s_x · s_w of each output channel, float64 [out] or [1]: what one unit of the sum is worth."""
    weight = exported_weight(layer).scale.detach().double().flatten()
    return weight * float(layer.input_quant.qparams()[0])


def without_rounding(prepared: nn.Module) -> nn.Module:
    """A copy in plain torch layers with batch norms folded: the float net, as it would be deployed.

    Raises:
        CalibrationError, NonFiniteError: as `labkit.training.batch_norm.fold_batch_norm`.
    """
    plain = copy.deepcopy(prepared).eval().requires_grad_(False)
    for name, layer in prepared.named_modules():
        if isinstance(layer, QatConvBn2d):
            _replace(plain, name, fold_batch_norm(layer, layer.norm))
        elif isinstance(layer, QatConv2d):
            _replace(plain, name, _with_parameters(convolution_like(layer, nn.Conv2d), layer))
        elif isinstance(layer, QatLinear):
            rows, columns = layer.weight.shape
            linear = nn.Linear(columns, rows, layer.bias is not None, device="meta")
            _replace(plain, name, _with_parameters(linear, layer))
    for name in stored_places(prepared):
        _replace(plain, name, Stored())
    return plain.eval().requires_grad_(False)


def _with_parameters(plain: nn.Module, layer: nn.Module) -> nn.Module:
    plain.weight, plain.bias = layer.weight, layer.bias
    return copy.deepcopy(plain)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
