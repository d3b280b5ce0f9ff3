"""A model's settings as GGUF metadata: what llama.cpp must know to compute what the model computes.

A setting that llama.cpp has no word for is refused, or, where it matters only sometimes, noted.
Source: the loaders in llama.cpp's src/models/ (load_arch_hparams) and load_hparams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.core.errors import ModelError
from labkit.formats.gguf.mix import ModelFacts
from labkit.formats.gguf.names import Naming
from labkit.formats.gguf.rope import Rope, rope_of, rope_values
from labkit.formats.gguf.values import Kind, Value, array, boolean, f32, u32

# The activation that llama.cpp computes, by model_type; all spellings of one function.
_SILU = ("silu", "swish")
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_ACTIVATIONS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), _SILU),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _TANH_GELU),
    "gpt2": _TANH_GELU,
    "gpt_neox": (*_TANH_GELU, "gelu"),
}
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
# Every how-maniest layer sees everything, where llama.cpp is told nothing else.
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6}


@dataclass(frozen=True)
class Settings:
    """What config.json says, in the words of all architectures.

    Args:
        heads, kv_heads: of queries, and of keys and values.
        head_size: rows of one head.
        context: positions that the model was made for.
    """

    model_type: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    vocabulary: int
    rope: Rope | None

    def facts(self, architecture: str) -> ModelFacts:
        """What the mix's rule asks."""
        return ModelFacts(architecture, self.layers, self.heads, self.kv_heads)


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Read a whole config (defaults filled in). Raises ModelError for what makes no sense."""
    kind = str(config["model_type"])
    heads = _first(config, "num_attention_heads", "n_head")
    hidden = _first(config, "hidden_size", "n_embd")
    feed_forward = _first(config, "intermediate_size", "n_inner", default=4 * hidden)
    return Settings(
        model_type=kind,
        layers=_first(config, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        feed_forward=feed_forward,
        heads=heads,
        kv_heads=_first(config, "num_key_value_heads", default=heads),
        head_size=_first(config, "head_dim", default=hidden // heads),
        context=_first(config, "max_position_embeddings", "n_positions"),
        vocabulary=_first(config, "vocab_size"),
        rope=None if kind == "gpt2" else rope_of(config),
    )


def setting_values(
    config: Mapping[str, Any], settings: Settings, naming: Naming
) -> tuple[dict[str, Value], list[str]]:
    """Metadata under the architecture's name, and notes about what llama.cpp will do otherwise.

    Raises ModelError for a setting with which llama.cpp would compute something else.
    """
    _require_same_function(config, settings)
    prefix = naming.architecture
    found = {
        "context_length": u32(settings.context),
        "embedding_length": u32(settings.hidden),
        "block_count": u32(settings.layers),
        "feed_forward_length": u32(settings.feed_forward),
        "attention.head_count": u32(settings.heads),
        "attention.head_count_kv": u32(settings.kv_heads),
        "vocab_size": u32(settings.vocabulary),
    }
    norm = _first(config, "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    root = "rms_norm_eps" in config
    found[f"attention.layer_norm_{'rms_' if root else ''}epsilon"] = f32(float(norm))
    if settings.rope is not None:
        found["rope.dimension_count"] = u32(rotated(config, settings))
        if settings.head_size * settings.heads != settings.hidden or "head_dim" in config:
            found["attention.key_length"] = u32(settings.head_size)
            found["attention.value_length"] = u32(settings.head_size)
    if settings.model_type == "gpt_neox":
        found["use_parallel_residual"] = boolean(bool(config["use_parallel_residual"]))
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            found[key] = f32(float(config[key]))
    window, notes = _window(config, settings)
    values = {f"{prefix}.{key}": value for key, value in {**found, **window}.items()}
    if settings.rope is not None:
        values |= rope_values(settings.rope, prefix, settings.context)
        if settings.rope.kind == "longrope":
            notes.append(
                "llama.cpp takes the factors of long contexts by the size of the context that it "
                "is opened with, not by the length of the text"
            )
    if config.get("hidden_act") == "gelu":
        notes.append("llama.cpp computes GELU by its tanh approximation")
    return values, notes


def rotated(config: Mapping[str, Any], settings: Settings) -> int:
    """Rows of a head that RoPE turns."""
    partial = config.get("rotary_pct") or config.get("partial_rotary_factor")
    if partial is None and settings.rope is not None:
        partial = settings.rope.settings.get("partial_rotary_factor")
    return int(settings.head_size * (1.0 if partial is None else float(partial)))


def _window(config: Mapping[str, Any], settings: Settings) -> tuple[dict[str, Value], list[str]]:
    """Sliding windows: Gemma's are told, others' are not known to llama.cpp."""
    size = config.get("sliding_window")
    if settings.model_type in _FULL_EVERY:
        if not size:
            return {}, []
        every = _FULL_EVERY[settings.model_type]
        usual = [(layer + 1) % every != 0 for layer in range(settings.layers)]
        sliding = _sliding(config, settings.layers, usual)
        if not any(sliding):
            # llama.cpp ends the process when it is told of a window that no layer has.
            if settings.model_type == "gemma3_text":
                return {}, []
            return {"attention.sliding_window": u32(max(int(size), settings.context))}, []
        found = {"attention.sliding_window": u32(int(size))}
        if sliding != usual:
            found["attention.sliding_window_pattern"] = array(Kind.BOOL, sliding)
        return found, []
    used = config.get("use_sliding_window", True) and "sliding_window" in config
    if not size or not used or size >= settings.context:
        return {}, []
    return {}, [
        f"llama.cpp runs {settings.model_type} without its sliding window: beyond {size} tokens "
        "of context it computes something else"
    ]


def _sliding(config: Mapping[str, Any], layers: int, usual: list[bool]) -> list[bool]:
    """Which layers have the window: transformers 4 says it by a number, 5 layer by layer."""
    if isinstance(every := config.get("sliding_window_pattern"), int):
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if kinds := config.get("layer_types"):
        return [kind == "sliding_attention" for kind in kinds]
    return usual


def _require_same_function(config: Mapping[str, Any], settings: Settings) -> None:
    kind = settings.model_type
    activation = config.get("hidden_activation") or _first(
        config, "hidden_act", "activation_function"
    )
    wrong = []
    if activation not in _ACTIVATIONS[kind]:
        wrong.append(f"activation {activation!r} (llama.cpp has {_ACTIVATIONS[kind][0]} for it)")
    whole = settings.head_size * settings.heads == settings.hidden
    if kind in ("qwen2", "phi3", "gpt2", "gpt_neox") and not whole:
        wrong.append(f"{settings.heads} heads of {settings.head_size} rows, hidden size "
                     f"{settings.hidden}")  # fmt: skip
    if kind == "gpt2":
        for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if config.get(key):
                wrong.append(key)
        if config.get("scale_attn_weights") is False:
            wrong.append("scale_attn_weights=False")
    if kind == "gpt_neox" and config.get("attention_bias") is False:
        wrong.append("attention_bias=False")
    if kind in ("qwen3", *_GEMMAS) and config.get("attention_bias"):
        wrong.append("bias in attention's output")
    if kind in ("gemma2", "gemma3_text"):
        scale, theirs = config["query_pre_attn_scalar"], _attention_scalar(settings)
        if scale != theirs:
            wrong.append(f"query_pre_attn_scalar {scale} (llama.cpp divides by {theirs})")
    if kind == "gemma3_text" and config.get("attn_logit_softcapping"):
        wrong.append("attn_logit_softcapping")
    if kind in ("gemma", "gemma2") and not config.get("tie_word_embeddings", True):
        wrong.append("an output matrix of its own (llama.cpp takes the embedding)")
    if wrong:
        raise ModelError(
            f"llama.cpp would compute something else, for it has no {'; no '.join(wrong)}",
            where="config.json",
        )


def _attention_scalar(settings: Settings) -> int:
    """What llama.cpp divides scores by the square root of; it knows 27B models by their layers."""
    largest = {"gemma2": 46, "gemma3_text": 62}[settings.model_type]
    if settings.layers == largest:
        return settings.hidden // settings.heads
    return settings.head_size


def _first(config: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    """The first of the keys that says something."""
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    if default is None:
        raise ModelError(f"no {' or '.join(keys)}", where="config.json")
    return default
