"""Tiny random models of every family, built from configs: no file, no network."""

from __future__ import annotations

import torch
from torch import nn

_COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}

# family -> (config class, what differs from _COMMON)
CONFIGS: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {}),
    "llama_gqa_tied": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", _GEMMA | {"query_pre_attn_scalar": 16}),
    "gemma3_text": ("Gemma3TextConfig", _GEMMA | {"query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {}),
    "gpt2": ("GPT2Config", {}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.25}),
}
FAMILIES = list(CONFIGS)


def tiny(family: str, seed: int = 0, **changes: object) -> nn.Module:
    """A model of `family` (a key of CONFIGS): hidden 64, 2 layers, random, in evaluation mode.

    The same family, seed and changes give the same weights. Norms and biases are random too, so
    that a test sees it when they are forgotten.
    """
    import transformers

    kind, own = CONFIGS[family]
    settings = _COMMON | own | changes
    if family in {"gpt2", "gpt_neox", "opt"}:
        settings.pop("num_key_value_heads")
    if family == "gpt2":  # it names the same things otherwise
        words = {
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "intermediate_size": "n_inner",
        }
        words |= {"num_attention_heads": "n_head", "max_position_embeddings": "n_positions"}
        settings = {words.get(key, key): value for key, value in settings.items()}
    config = getattr(transformers, kind)(**settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / width**0.5)
            else:
                parameter.add_(noise * 0.1)
    return model.requires_grad_(False)


def tokens(
    sequences: int = 6, length: int = 16, vocabulary: int = 128, seed: int = 1
) -> torch.Tensor:
    """Random token ids, int64 [sequences, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (sequences, length), generator=generator)
