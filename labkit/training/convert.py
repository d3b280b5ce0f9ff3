"""From a trained model to integers: a model that computes with them, and what a file holds.

Training rounded with the scales that are stored, so the codes are exactly those that were trained:
nothing is calibrated, searched or rounded again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labkit.core.errors import FormatError, LabkitError, ModelError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.formats.checkpoint import Checkpoint
from labkit.formats.inputs import InputQuantization
from labkit.models.quantized import checkpoint_from
from labkit.training.batch_norm import QatConvBn2d
from labkit.training.fake_quant import FakeQuant
from labkit.training.integer_layers import (
    IntegerEmbedding,
    integer_convolution,
    integer_linear,
)
from labkit.training.layers import (
    QatConv2d,
    QatEmbedding,
    QatLinear,
    convolution_like,
    exported_weight,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRAINED = (QatLinear, QatEmbedding, QatConv2d, QatConvBn2d)
# What a checkpoint says of inputs: labkit.formats.inputs.
_STORED_INPUTS = {"bits": 8, "symmetric": True, "narrow_range": False}


@dataclass(frozen=True)
class Converted:
    """A trained model as integers.

    Args:
        model: it computes with them; see `labkit.training.integer_layers`.
        layers: the quantized weights by module name.
        trained: the model that they come from, in evaluation mode.
    """

    model: nn.Module
    layers: Mapping[str, QuantizedTensor]
    trained: nn.Module = field(repr=False)

    def checkpoint(self, tokenizer: PreTrainedTokenizerBase | None = None) -> Checkpoint:
        """What `labkit.formats.gptq` or `.compressed_tensors` saves.

        The linear layers alone are stored as integers. A rounded table, and a head tied to it, are
        stored as the floats that their integers stand for: no reader knows them otherwise. With
        rounded inputs (W8A8, W4A8) the codes are stored in 8 bits each, as "int-quantized" wants
        them; fewer bits take no less room there.

        Raises:
            FormatError: inputs in a scheme that no format states: other than symmetric 8 bits over
                the full range, or a cache.
        """
        plain = dequantized(self.trained)
        tables = {n for n, layer in self.trained.named_modules() if _is_table(layer, self.trained)}
        layers = {name: layer for name, layer in self.layers.items() if name not in tables}
        inputs = _stored_inputs(self.trained, layers)
        if inputs:
            layers = {name: _in_bytes(layer) for name, layer in layers.items()}
        return checkpoint_from(plain, layers, tokenizer, inputs=inputs)


def convert(model: nn.Module) -> Converted:
    """The integers of a model that `prepare` made and training changed. It is not changed.

    Raises:
        ModelError: nothing in it was prepared.
        CalibrationError: an observer that saw nothing, or an activation without variance.
        NonFiniteError: training has ruined a weight or a scale.
    """
    trained = copy.deepcopy(model).eval().requires_grad_(False)
    whole = copy.deepcopy(trained)
    layers: dict[str, QuantizedTensor] = {}
    for name, layer in trained.named_modules():
        if not isinstance(layer, _TRAINED):
            continue
        try:
            new = _integer_module(layer)
        except LabkitError as error:
            error.add_note(f"in layer {name}")
            raise
        layers[name] = new.quantized
        parent, _, leaf = name.rpartition(".")
        setattr(whole.get_submodule(parent), leaf, new)
    if not layers:
        raise ModelError(
            "no layer of it rounds",
            where=type(model).__name__,
            remedy="Convert what labkit.training.prepare.prepare returned.",
        )
    return Converted(whole, layers, trained)


def dequantized(model: nn.Module) -> nn.Module:
    """A copy in plain torch layers with the weights that the integers stand for, inputs unrounded.

    Raises:
        CalibrationError, NonFiniteError: as `convert`.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, _TRAINED):
            parent, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, _plain_layer(layer))
    return plain


def _integer_module(layer: nn.Module) -> nn.Module:
    if isinstance(layer, QatEmbedding):
        return IntegerEmbedding(exported_weight(layer))
    if not isinstance(layer, QatLinear):
        return integer_convolution(layer)
    new = integer_linear(layer)
    if layer.output_quant is not None:
        nothing = torch.zeros(1, layer.out_features, device=layer.weight.device)
        layer.output_quant(nothing)  # refuses to be exported before it saw anything
        new.register_forward_hook(_rounding(layer.output_quant))
    return new.eval()


def _rounding(quant: nn.Module):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return quant(output)

    return hook


@torch.no_grad()
def _plain_layer(layer: nn.Module) -> nn.Module:
    if isinstance(layer, QatConvBn2d):
        layer = layer.folded()
    if isinstance(layer, QatEmbedding):
        new: nn.Module = nn.Embedding(*layer.weight.shape, layer.padding_idx, device="meta")
    elif isinstance(layer, QatLinear):
        rows, columns = layer.weight.shape
        new = nn.Linear(columns, rows, layer.bias is not None, device="meta")
    else:
        new = convolution_like(layer, nn.Conv2d)
    new.weight = nn.Parameter(exported_weight(layer).dequantize(), requires_grad=False)
    if getattr(layer, "bias", None) is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return new.eval()


def _is_table(layer: nn.Module, model: nn.Module) -> bool:
    """Whether it is an embedding, or a head of the same weight."""
    if isinstance(layer, QatEmbedding):
        return True
    tables = (module.weight for module in model.modules() if isinstance(module, QatEmbedding))
    return isinstance(layer, QatLinear) and any(layer.weight is table for table in tables)


def _stored_inputs(
    model: nn.Module, layers: Mapping[str, QuantizedTensor]
) -> dict[str, InputQuantization]:
    inputs = {}
    for name in layers:
        layer = model.get_submodule(name)
        if getattr(layer, "output_quant", None) is not None:
            raise _unstorable("a rounded cache", name)
        quant = getattr(layer, "input_quant", None)
        if quant is None:
            continue
        scheme = quant.scheme
        if any(getattr(scheme, key) != value for key, value in _STORED_INPUTS.items()):
            raise _unstorable(f"inputs in {scheme}", name)
        dynamic = isinstance(quant, FakeQuant) and quant.ranges == "current"
        scale = None if dynamic else quant.qparams()[0]
        inputs[name] = InputQuantization("int", scheme.granularity, scale)
    return inputs


def _unstorable(what: str, name: str) -> FormatError:
    return FormatError(
        f"{what}, which no format here states",
        where=f"layer {name!r}",
        remedy="Train with inputs in QuantScheme(8, True, 'token' or 'tensor',"
        " narrow_range=False), and without a cache.",
    )


def _in_bytes(layer: QuantizedTensor) -> QuantizedTensor:
    """The same numbers, a code in 8 bits whatever it needs."""
    scheme = layer.scheme
    wide = QuantScheme(
        8, scheme.symmetric, scheme.granularity, scheme.group_size, narrow_range=False
    )
    return QuantizedTensor(layer.codes, layer.scale, layer.zero_point, wide)
