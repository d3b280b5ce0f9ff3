"""From a checkpoint to a model that runs, and back from a model and its quantized layers.

The model computes in floating point with the dequantized weights: its outputs are those of the
stored integers, its memory is not. Where a checkpoint quantizes inputs too (W8A8), each of those
layers rounds its inputs first, so that the outputs are those of the integers there as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.core.errors import FormatError, LabkitError
from labkit.core.quantized import Quantized
from labkit.formats.checkpoint import QUANTIZATION, Checkpoint
from labkit.formats.inputs import InputQuantization
from labkit.formats.tokenizer_files import tokenizer_files
from labkit.models.skeleton import parameters_on_meta
from labkit.models.walking import as_stored, weight_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Written by transformers of 2022 and before; newer ones compute them.
_COMPUTED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias")


def checkpoint_from(
    model: nn.Module,
    layers: Mapping[str, Quantized],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    inputs: Mapping[str, InputQuantization] | None = None,
) -> Checkpoint:
    """What a format saves: the quantized layers, and everything else as the model holds it.

    Args:
        model: a transformers model; of the quantized layers only the biases are taken from it.
        layers: quantized weights by module name, as `LayerReport.quantized` or the driver gives.
        tokenizer: saved beside the model.

    Raises:
        FormatError: a layer that the model does not have, or of another shape.
    """
    modules = dict(model.named_modules())
    for name, layer in layers.items():
        if name not in modules or not hasattr(modules[name], "weight"):
            raise FormatError(f"no layer {name!r}", where=type(model).__name__)
        if weight_matrix(modules[name]).shape != layer.shape:
            raise FormatError(
                f"layer {name!r} is {tuple(layer.shape)}",
                where=type(model).__name__,
                remedy=f"The model's is {tuple(weight_matrix(modules[name]).shape)}.",
            )
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        tied = tensor.data_ptr() in seen and tensor.numel() > 0
        if name.removesuffix(".weight") not in layers and not tied:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach()
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config.pop(QUANTIZATION, None)
    config.setdefault("architectures", [type(model).__name__])
    files = tokenizer_files(tokenizer) if tokenizer is not None else {}
    return Checkpoint(config, tensors, dict(layers), files, dict(inputs or {}))


def model_from(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model that a checkpoint describes, in float32 and evaluation mode.

    Nothing is made up: every parameter comes from the checkpoint, and every tensor of it is used.

    Raises:
        FormatError: config.json that no transformers model can be made from, or that disagrees
            with the tensors: missing, left over, or of another shape.
    """
    from transformers import AutoModelForCausalLM

    config = config_of(checkpoint)
    # First without memory: a config that claims 10^6 x 10^6 costs nothing before it is refused.
    with torch.device("meta"):
        skeleton = built(AutoModelForCausalLM, config).to(torch.float32)
    _require_names(skeleton, checkpoint)
    weights = _read(skeleton, checkpoint)
    with parameters_on_meta():
        model = built(AutoModelForCausalLM, config).to(torch.float32)
    model.load_state_dict(weights, strict=False, assign=True)
    for name in tied_head(model) - {f"{layer}.weight" for layer in checkpoint.layers}:
        head = model.get_submodule(name.removesuffix(".weight"))
        head.weight = model.get_input_embeddings().weight
    for name, quantization in checkpoint.inputs.items():
        model.get_submodule(name).register_forward_pre_hook(_rounding(quantization))
    return model.requires_grad_(True).eval()


def config_of(checkpoint: Checkpoint) -> Any:
    """The transformers config of a checkpoint. Raises FormatError for one that cannot be."""
    from transformers import AutoConfig

    fields = {key: value for key, value in checkpoint.config.items() if key != QUANTIZATION}
    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        raise FormatError(f"model_type is {kind!r}", where="config.json")
    try:
        config = AutoConfig.for_model(kind, **fields)
        layers = int(config.num_hidden_layers)
    except _built_errors() as error:
        raise FormatError(f"no such model: {error}", where="config.json") from error
    _require_depth(layers, checkpoint)
    return config


def _require_depth(layers: int, checkpoint: Checkpoint) -> None:
    """As many blocks as there are tensors for: building 10^9 empty ones takes forever, too."""
    found = -1
    for name in (*checkpoint.tensors, *checkpoint.layers):
        number = next((part for part in name.split(".") if part.isdecimal()), None)
        # A number of more digits than any model has blocks is a name, not a count.
        if number is not None and len(number) < 7:
            found = max(found, int(number))
    if layers != found + 1:
        raise FormatError(
            f"num_hidden_layers is {layers}, and there are tensors for {found + 1} blocks",
            where="config.json",
            remedy="config.json and the weights do not belong together; fetch both again.",
        )


def built(factory: Any, config: Any) -> PreTrainedModel:
    """A model with random weights. Raises FormatError for a config that none can be made from."""
    try:
        return factory.from_config(config)
    except _built_errors() as error:
        raise FormatError(f"no model can be built: {error}", where="config.json") from error


def _built_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for fields of a wrong type or value: whatever trips over them."""
    from huggingface_hub import errors

    strict = getattr(errors, "StrictDataclassError", ValueError)
    usual = (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError)
    return (*usual, RuntimeError, AssertionError, strict)


def _require_names(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Every name of the checkpoint has a place in the model, and the other way round."""
    wanted = set(model.state_dict())
    modules = dict(model.named_modules())
    for name in checkpoint.layers:
        if not isinstance(getattr(modules.get(name), "weight", None), torch.Tensor):
            raise misfit(f"layer {name!r} is not in a {type(model).__name__}")
    for name in checkpoint.tensors:
        if name not in wanted and not says_nothing(name, checkpoint):
            raise misfit(f"tensor {name!r} belongs nowhere in a {type(model).__name__}")
    offered = {f"{name}.weight" for name in checkpoint.layers} | set(checkpoint.tensors)
    missing = sorted(wanted - offered - tied_head(model))
    if missing:
        raise misfit(f"no tensor for {missing[0]!r}, and {len(missing) - 1} others")


@torch.no_grad()
def _read(model: nn.Module, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """What goes into the model's state dict: each tensor is read, each layer unpacked, once."""
    wanted = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    for name in checkpoint.tensors:
        if name in wanted:
            tensor = checkpoint.tensors[name]
            _require_shape(f"tensor {name!r}", tensor.shape, wanted[name].shape)
            found[name] = tensor.to(wanted[name].dtype)
    for name in checkpoint.layers:
        module = model.get_submodule(name)
        try:
            layer = checkpoint.layers[name]
            _require_shape(f"layer {name!r}", layer.shape, weight_matrix(module).shape)
            found[f"{name}.weight"] = as_stored(module, layer.dequantize().float())
        except LabkitError as error:
            error.add_note(f"in layer {name}")
            raise
    return found


def _require_shape(what: str, found: Iterable[int], wanted: Iterable[int]) -> None:
    if tuple(found) != tuple(wanted):
        raise misfit(f"{what} is {tuple(found)}, by config.json {tuple(wanted)}")


def says_nothing(name: str, checkpoint: Checkpoint) -> bool:
    """Left over, but harmless: what models compute, and AutoGPTQ's biases of 0 for every layer."""
    if name.endswith(_COMPUTED):
        return True
    unbiased = name.endswith(".bias") and name.removesuffix(".bias") in checkpoint.layers
    return unbiased and not bool(checkpoint.tensors[name].any())


def tied_head(model: nn.Module) -> set[str]:
    """The names of the parameter that is another one of the model: the head of most small ones."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    head = model.get_output_embeddings()
    return {f"{name}.weight" for name, module in model.named_modules() if module is head}


def misfit(what: str) -> FormatError:
    """config.json says one thing, and the tensors another."""
    return FormatError(
        what, remedy="config.json and the weights do not belong together; fetch both again."
    )


def _rounding(quantization: InputQuantization) -> Any:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (quantization.apply(args[0]), *args[1:])

    return hook
