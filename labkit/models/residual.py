"""Who writes into a model's residual stream, and who reads from it through which norm.

A rotation of the stream must be undone wherever it is read and done wherever it is written, so it
needs the full list: an architecture that is not here is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from labkit.core.errors import ModelError


@dataclass(frozen=True)
class ResidualStream:
    """Names of modules. `reads` and `writes` are relative to a block.

    embeddings: tables [n, hidden] that start the stream.
    reads: (norm, linears that read its output) in each block.
    writes: linears whose output is added to the stream.
    centred: the norms subtract the mean first (LayerNorm).
    gain_offset: what a norm adds to its stored weight (Gemma: 1).
    """

    embeddings: tuple[str, ...]
    blocks: str
    reads: tuple[tuple[str, tuple[str, ...]], ...]
    writes: tuple[str, ...]
    final_norm: str
    centred: bool = False
    gain_offset: float = 0.0


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = ResidualStream(
    embeddings=("model.embed_tokens",),
    blocks="model.layers",
    reads=(
        ("input_layernorm", _ATTENTION),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ),
    writes=("self_attn.o_proj", "mlp.down_proj"),
    final_norm="model.norm",
)
_PHI3 = ResidualStream(
    embeddings=("model.embed_tokens",),
    blocks="model.layers",
    reads=(
        ("input_layernorm", ("self_attn.qkv_proj",)),
        ("post_attention_layernorm", ("mlp.gate_up_proj",)),
    ),
    writes=("self_attn.o_proj", "mlp.down_proj"),
    final_norm="model.norm",
)
_GEMMA = ResidualStream(
    _LLAMA.embeddings,
    _LLAMA.blocks,
    _LLAMA.reads,
    _LLAMA.writes,
    _LLAMA.final_norm,
    gain_offset=1.0,
)
_GPT2 = ResidualStream(
    embeddings=("transformer.wte", "transformer.wpe"),
    blocks="transformer.h",
    reads=(("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",))),
    writes=("attn.c_proj", "mlp.c_proj"),
    final_norm="transformer.ln_f",
    centred=True,
)
_NEOX = ResidualStream(
    embeddings=("gpt_neox.embed_in",),
    blocks="gpt_neox.layers",
    reads=(
        ("input_layernorm", ("attention.query_key_value",)),
        ("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    ),
    writes=("attention.dense", "mlp.dense_4h_to_h"),
    final_norm="gpt_neox.final_layer_norm",
    centred=True,
)
STREAMS = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _PHI3,
    "gemma": _GEMMA,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}


def residual_stream(model: nn.Module) -> ResidualStream:
    """The stream of a Hugging Face causal LM, by its config's `model_type`.

    Raises ModelError for an architecture whose stream is not known, naming those that are.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in STREAMS:
        raise ModelError(
            f"the residual stream of {kind or 'a model without config'} is not known",
            where=type(model).__name__,
            remedy=f"Rotation is ready for {', '.join(STREAMS)}.",
        )
    return STREAMS[kind]
