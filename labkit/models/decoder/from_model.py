"""A decoder out of a float model in memory: the same weights, 16 or 32 bits each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from labkit.core.errors import ModelError
from labkit.kernels.gguf_panels import GgufPanels
from labkit.models.decoder.settings import capacity_of, rope_tables, shape_of
from labkit.nn.decoder.decoder import Decoder
from labkit.nn.decoder.parts import Layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def decoder_from_model(
    model: PreTrainedModel, *, capacity: int | None = None, threads: int | None = None
) -> Decoder:
    """A copy of ``model``'s weights in its dtype; activations are float32.

    Raises ModelError for a family, settings or modules that the decoder does not run.
    """
    where = type(model).__name__
    shape = shape_of(model.config, where)
    room = capacity_of(model.config, capacity)
    inner = model.model
    embedding, head = inner.embed_tokens.weight, model.lm_head.weight
    ends = [_panels(embedding)]
    ends.append(ends[0] if head is embedding else _panels(head))
    cosine, sine = rope_tables(model.config, room, where)
    return Decoder(
        shape=shape,
        layers=[_layer(block) for block in inner.layers],
        embedding=ends[0],
        head=ends[1],
        norm=_floats(inner.norm.weight),
        cosine=cosine,
        sine=sine,
        activation_bits=16,
        threads=threads,
    )


def _layer(block: torch.nn.Module) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    linears = dict(
        q=attention.q_proj,
        k=attention.k_proj,
        v=attention.v_proj,
        o=attention.o_proj,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
    )
    for name, linear in linears.items():
        if type(linear) is not torch.nn.Linear:
            raise ModelError(
                f"{name} is a {type(linear).__name__}",
                "decoder_from_model",
                "Give a model with plain Linear layers, or a GGUF file to decoder_from_gguf.",
            )
        if linear.bias is not None and name not in "qkv":
            raise ModelError(f"a bias of {name}", "decoder_from_model")
    biases = [linears[name].bias for name in "qkv"]
    norms = [getattr(attention, f"{name}_norm", None) for name in "qk"]
    return Layer(
        **{name: _panels(linear.weight) for name, linear in linears.items()},
        attention_norm=_floats(block.input_layernorm.weight),
        mlp_norm=_floats(block.post_attention_layernorm.weight),
        qkv_bias=None if biases[0] is None else np.concatenate([_floats(b) for b in biases]),
        head_norms=None if norms[0] is None else tuple(_floats(norm.weight) for norm in norms),
    )


def _floats(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _panels(weight: Tensor) -> GgufPanels:
    if weight.dtype not in _TYPES:
        raise ModelError(f"weights of {weight.dtype}", "decoder_from_model")
    rows = weight.detach().cpu().contiguous().view(torch.uint8)
    return GgufPanels.from_blocks(rows, _TYPES[weight.dtype])
