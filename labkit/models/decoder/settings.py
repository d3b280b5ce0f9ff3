"""A model's sizes and RoPE's tables as a decoder wants them, out of its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from labkit.core.errors import ModelError
from labkit.nn.decoder.parts import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPES = ("default", "linear", "llama3", "yarn")


def shape_of(config: PretrainedConfig, where: str) -> Shape:
    """The sizes. Raises ModelError for a family or a setting that the decoder does not run."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise ModelError(
            f"{kind!r} models", where, f"The decoder runs {', '.join(FAMILIES)}; "
            "labkit.models.decode.decode runs any model of transformers.",
        )  # fmt: skip
    if config.hidden_act not in ("silu", "swish"):
        raise ModelError(f"activation {config.hidden_act!r}", where, "The decoder has SiLU.")
    heads = config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if not window or not getattr(config, "use_sliding_window", True):
        window = 0
    elif len(kinds) > 1:
        raise ModelError("a sliding window in some layers only", where)
    elif kinds == {"full_attention"}:
        window = 0
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        window=window,
    )


@torch.no_grad()
def rope_tables(
    config: PretrainedConfig, capacity: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of ``capacity`` positions, float32 [capacity, head_dim / 2]: transformers'.

    Raises ModelError for a scaling whose frequencies change with the length of the text.
    """
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(config)
    if rotary.rope_type not in _ROPES:
        raise ModelError(
            f"RoPE scaling {rotary.rope_type!r}", where, f"The decoder has {', '.join(_ROPES)}."
        )
    cosine, sine = rotary(torch.zeros(1), torch.arange(capacity).reshape(1, -1))
    half = cosine.shape[-1] // 2
    return tuple(np.ascontiguousarray(t[0, :, :half].float().numpy()) for t in (cosine, sine))


def capacity_of(config: PretrainedConfig, capacity: int | None) -> int:
    """Tokens that the cache gets room for: what was asked, or the model's context up to 2048."""
    return capacity or min(config.max_position_embeddings, 2048)
