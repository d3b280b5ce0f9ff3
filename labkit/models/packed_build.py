"""From a checkpoint to a model whose layers hold the checkpoint's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from labkit.core.errors import LabkitError, ModelError, SchemeError
from labkit.formats.checkpoint import Checkpoint
from labkit.models.freed import give_back
from labkit.models.quantized import built, config_of, misfit, says_nothing, tied_head
from labkit.models.skeleton import parameters_on_meta
from labkit.models.walking import is_linear, weight_matrix
from labkit.nn.packed import Form, PackedWeight, form_of
from labkit.nn.packed.floats import FloatForm
from labkit.nn.packed.gguf import GgufForm
from labkit.nn.quant_embedding import QuantEmbedding
from labkit.nn.quant_linear import QuantLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Bits = Literal[16, 8]
# transformers 5 calls GPT-NeoX's head lm_head, files call it embed_out.
_HEADS = ("lm_head.weight", "embed_out.weight")


@torch.no_grad()
def build(checkpoint: Checkpoint, dtype: torch.dtype, activation_bits: Bits) -> PreTrainedModel:
    """The model that a checkpoint describes, in evaluation mode, its layers packed.

    Raises:
        FormatError: config.json and the tensors disagree: missing, left over, of another shape.
        ModelError: activation bits other than 16 and 8.
        SchemeError: 8 activation bits, and no layer that has a kernel for them.
    """
    from transformers import AutoModelForCausalLM

    if activation_bits not in (16, 8):
        raise ModelError(f"{activation_bits!r} activation bits", remedy="Choose 16 or 8.")
    config = config_of(checkpoint)
    # First without memory: a config that claims 10^6 x 10^6 costs nothing before it is refused.
    with torch.device("meta"):
        skeleton = built(AutoModelForCausalLM, config)
    weights = _read(skeleton, checkpoint, dtype, activation_bits)
    with parameters_on_meta():
        model = built(AutoModelForCausalLM, config).to(torch.float32)
    _place(model, weights, checkpoint, dtype, activation_bits)
    _tie(model, weights, activation_bits)
    if activation_bits == 8 and not any(_rounds(module) for module in model.modules()):
        raise SchemeError(
            "no layer has a kernel for 8-bit activations",
            where=type(model).__name__,
            remedy="4-bit integers, 8-bit ones by channel, some GGUF types have; else choose 16.",
        )
    return model.requires_grad_(False).eval()


def _rounds(module: nn.Module) -> bool:
    return isinstance(module, QuantLinear) and module.activation != "16"


def _read(
    skeleton: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, bits: Bits
) -> dict[str, Form | Tensor]:
    """Every weight by its name in the state dict: packed, or a tensor in ``dtype``."""
    shapes = {name: tuple(t.shape) for name, t in skeleton.state_dict().items()}
    modules = dict(skeleton.named_modules())
    found: dict[str, Form | Tensor] = {}
    tied = tied_head(skeleton)
    for theirs, value in _values(checkpoint):
        name = _own_name(theirs, shapes)
        if name not in shapes:
            if says_nothing(theirs, checkpoint):
                continue
            raise misfit(f"{theirs!r} belongs nowhere in a {type(skeleton).__name__}")
        module = modules[name.rpartition(".")[0]]
        matrix = name.endswith(".weight") and (is_linear(module) or _is_table(module))
        wanted = shapes[name]
        if not isinstance(value, Tensor) and matrix:
            wanted = tuple(weight_matrix(module).shape)
        if tuple(value.shape) != wanted:
            raise misfit(f"{theirs!r} is {tuple(value.shape)}, by config.json {wanted}")
        inputs = checkpoint.inputs.get(theirs.removesuffix(".weight"))
        wanted_bits = 16 if _is_table(module) and not tied else bits
        integers = wanted_bits == 8 or (inputs is not None and inputs.kind == "int")
        try:
            found[name] = _kept(value, module if matrix else None, dtype, integers)
        except LabkitError as error:
            error.add_note(f"in {theirs}")
            raise
        if isinstance(found[name], Form):
            del value
            give_back()  # else the peak grows by a part of each layer
    missing = sorted(set(shapes) - set(found) - tied)
    if missing:
        raise misfit(f"no tensor for {missing[0]!r}, and {len(missing) - 1} others")
    return found


def _values(checkpoint: Checkpoint) -> Iterator[tuple[str, object]]:
    """Names and values, read one after another; quantized ones are [out, in]."""
    for name in checkpoint.tensors:
        yield name, checkpoint.tensors[name]
    for name in checkpoint.layers:
        try:
            yield f"{name}.weight", checkpoint.layers[name]
        except LabkitError as error:
            error.add_note(f"in layer {name}")
            raise


def _own_name(name: str, shapes: dict[str, tuple[int, ...]]) -> str:
    if name in _HEADS and name not in shapes:
        return next((head for head in _HEADS if head in shapes), name)
    return name


def _is_table(module: nn.Module) -> bool:
    """An embedding that looks rows up, and at most multiplies them by a number (Gemma 3)."""
    plain = type(module) is nn.Embedding
    return plain or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"))


def _kept(
    value: object, module: nn.Module | None, dtype: torch.dtype, integers: bool
) -> Form | Tensor:
    """What is kept of a weight; ``module`` is the linear layer or table that it is the matrix of.

    A matrix of floats is packed where it is narrower than ``dtype``.
    """
    if isinstance(value, Tensor):
        if module is None or value.dtype.itemsize >= dtype.itemsize:
            return value.to(dtype) if value.is_floating_point() else value
        turned = value.T.contiguous() if type(module).__name__ == "Conv1D" else value
        return form_of(turned)
    # Panels of GGUF blocks are for a CPU; on a GPU the blocks are read as they are.
    integers = integers and not (isinstance(value, GgufForm) and torch.cuda.is_available())
    form = form_of(value, integer_inputs=integers)
    wide = isinstance(form, FloatForm) and form.weight.dtype.itemsize >= dtype.itemsize
    if module is not None and not wide:
        return form
    turned = form.dequantize().to(dtype)
    return turned.T.contiguous() if type(module).__name__ == "Conv1D" else turned


def _place(
    model: nn.Module,
    weights: dict[str, Form | Tensor],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    bits: Bits,
) -> None:
    """Replace modules whose matrix is packed, and set all other parameters and buffers."""
    own = dict(model.named_modules())
    for name, value in weights.items():
        owner, _, attribute = name.rpartition(".")
        if isinstance(value, Tensor):
            if not isinstance(weights.get(f"{owner}.weight"), Form):
                _set(own[owner], attribute, value)
        elif is_linear(own[owner]):
            bias = weights.get(f"{owner}.bias")
            inputs = checkpoint.inputs.get(owner)
            wanted = bits if inputs is None and bits in value.activations else 16
            _replace(
                model, owner, QuantLinear(PackedWeight(value, dtype), bias, wanted, inputs=inputs)
            )
        else:
            _replace(model, owner, QuantEmbedding(value, dtype, _factor(own[owner])))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    if name in module._buffers:
        module._buffers[name] = value.to(module._buffers[name].dtype)
    else:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _factor(table: nn.Module) -> float | None:
    """What Gemma 3 multiplies its embeddings by; a buffer, a number or both."""
    scale = getattr(table, "scalar_embed_scale", getattr(table, "embed_scale", None))
    return None if scale is None else float(scale)


def _tie(model: PreTrainedModel, weights: dict[str, Form | Tensor], bits: Bits) -> None:
    """Give a head without a weight of its own the embedding's."""
    for name in tied_head(model) - set(weights):
        owner = name.removesuffix(".weight")
        head, table = model.get_submodule(owner), model.get_input_embeddings()
        if not isinstance(table, QuantEmbedding):
            head.weight = table.weight
            continue
        shared: PackedWeight = table.weight
        bias = weights.get(f"{owner}.bias")
        wanted = bits if bits in shared.form.activations else 16
        _replace(model, owner, QuantLinear(shared, bias, wanted))
