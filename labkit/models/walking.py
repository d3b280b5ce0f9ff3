"""Find the linear layers of any decoder model, and see what flows into them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError

# Hugging Face models call the projection to the vocabulary one of these.
_HEADS = ("lm_head", "embed_out", "output_projection")


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the longest ModuleList of the model.

    Raises ModelError when the model has none.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(
            "no list of decoder blocks",
            where=type(model).__name__,
            remedy="labkit walks transformer decoders; load one with labkit.models.load.",
        )
    return max(lists, key=lambda pair: len(pair[1]))


def is_linear(module: nn.Module) -> bool:
    """`nn.Linear`, or GPT-2's `Conv1D`, which is a linear layer stored the other way round."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer inside the decoder blocks, by its full name, in order.

    `nn.Linear` holds [out, in]; GPT-2's `Conv1D` holds [in, out] and is included, because its
    rows and columns are a matter of storage alone (`weight_matrix` turns it). The embedding and
    the head are not linear layers of a block and are left out.
    """
    prefix, blocks = decoder_blocks(model)
    found = {}
    for name, module in blocks.named_modules():
        if is_linear(module) and name.rsplit(".", 1)[-1] not in _HEADS:
            found[f"{prefix}.{name}"] = module
    return found


def weight_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as [out, in], whichever way it is stored; a view, not a copy."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def as_stored(layer: nn.Module, matrix: Tensor) -> Tensor:
    """`matrix` [out, in] the way the layer stores its weight, contiguous."""
    return matrix.T.contiguous() if type(layer).__name__ == "Conv1D" else matrix.contiguous()


@torch.no_grad()  # not inference_mode: learners may differentiate through what they get
def capture_inputs(model: nn.Module, token_ids: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """What flows into the named layers: name -> float32 [tokens, in].

    `token_ids`: int64 [sequences, length] (or [length]). Raises ModelError for an unknown name.
    """
    layers, wanted = dict(model.named_modules()), list(names)
    for name in wanted:
        if name not in layers:
            raise ModelError(f"no layer {name!r}", where=type(model).__name__)
    seen: dict[str, Tensor] = {}

    def hook_for(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0].detach().flatten(0, -2).float().clone()

        return hook

    handles = [layers[name].register_forward_pre_hook(hook_for(name)) for name in wanted]
    try:
        device = next(model.parameters()).device
        model(input_ids=token_ids.reshape(-1, token_ids.shape[-1]).to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen
