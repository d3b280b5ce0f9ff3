"""Plant loud channels in a model's keys, as large models have them, without changing what it says.

A score is q · k: a channel of k times f and the same channel of q over f leave it as it was. Rotary
embeddings turn channel i with channel i + dim / 2, by the same angle in q and k, so both of a pair
get the factor. Read backwards this is a cure: SmoothAttention (Lin et al. 2024, "QServe", arXiv
2405.04532, section 4.2) moves loud key channels into the queries, which no cache keeps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from labkit.core.errors import ModelError, SchemeError
from labkit.models.walking import decoder_blocks


def plant_in_keys(model: Any, factor: float, pairs: Sequence[int] = (0,)) -> nn.Module:
    """A copy of a model with rotary attention whose keys are `factor` times louder in `pairs`.

    A pair is i and i + head_dim / 2 of every key head.

    Raises:
        SchemeError: a factor that is not a positive power of two (it would round the weights), or
            a pair that is not there.
        ModelError: blocks without self_attn.q_proj and .k_proj, or with a norm behind them.
    """
    if not (math.isfinite(factor) and factor > 0 and math.frexp(factor)[0] == 0.5):
        raise SchemeError(f"factor {factor}", "plant_in_keys", "Use a power of two.")
    changed = copy.deepcopy(model)
    config = changed.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not all(0 <= pair < dim // 2 for pair in pairs):
        raise SchemeError(f"pairs {list(pairs)}", "plant_in_keys", f"Use 0 … {dim // 2 - 1}.")
    channels = [channel for pair in pairs for channel in (pair, pair + dim // 2)]
    for block in decoder_blocks(changed)[1]:
        attention = getattr(block, "self_attn", None)
        if not hasattr(attention, "q_proj") or hasattr(attention, "q_norm"):
            raise ModelError(
                "no q_proj and k_proj that the scores read directly",
                type(model).__name__,
                "Use a model of the Llama, Mistral or Qwen2 kind.",
            )
        for layer, by in ((attention.k_proj, factor), (attention.q_proj, 1 / factor)):
            _scale_rows(layer, dim, channels, by)
    return changed


@torch.no_grad()
def _scale_rows(layer: nn.Linear, dim: int, channels: list[int], by: float) -> None:
    layer.weight.view(-1, dim, layer.in_features)[:, channels] *= by
    if layer.bias is not None:
        layer.bias.view(-1, dim)[:, channels] *= by
