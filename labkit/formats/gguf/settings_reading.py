"""config.json from GGUF's metadata: `settings.py` the other way round.

What GGUF does not keep (dropout, initializer_range, ...) takes transformers' defaults; it does not
change what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.core.errors import FormatError
from labkit.formats.gguf.names import Naming
from labkit.formats.gguf.rope_reading import rope_config

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
}


@dataclass(frozen=True)
class Source:
    """A file's metadata and shapes, asked with the architecture's keys.

    Raises FormatError for what is missing, or of a kind or size that makes no sense.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    architecture: str
    where: str
    read: Callable[[str], np.ndarray]

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int | None = None) -> int:
        found = self.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 2**31:
            raise self._wrong(key, found, "a whole number above 0")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        found = self.get(key, default)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found < 1e30:
            raise self._wrong(key, found, "a number above 0")
        return _short(float(found))

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise FormatError(f"no tensor {name}", where=self.where, remedy="Fetch it again.")
        return self.shapes[name]

    def _wrong(self, key: str, found: object, wanted: str) -> FormatError:
        return FormatError(
            f"{self.architecture}.{key} is {str(found)[:80]}, not {wanted}",
            where=self.where,
            remedy="The file is damaged, or of an architecture that labkit does not read.",
        )


def config_of(source: Source, naming: Naming) -> dict[str, Any]:
    """config.json, without the tokenizer's ids. Raises FormatError."""
    kind = naming.model_type
    if source.count("block_count") > len(source.shapes):
        raise FormatError(
            f"{source.count('block_count')} blocks of {len(source.shapes)} tensors",
            where=source.where,
            remedy="Fetch the file again.",
        )
    hidden, heads = source.count("embedding_length"), source.count("attention.head_count")
    if hidden % heads and not source.get("attention.key_length"):
        raise FormatError(f"{heads} heads in {hidden} columns", where=source.where)
    common = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "torch_dtype": "float32",
        "tie_word_embeddings": "output.weight" not in source.shapes,
        "vocab_size": source.shape("token_embd.weight")[0],
    }
    if kind == "gpt2":
        return common | _gpt2(source, hidden, heads)
    head_size = source.count("attention.key_length", hidden // heads)
    common |= {
        "hidden_size": hidden,
        "intermediate_size": source.count("feed_forward_length"),
        "num_hidden_layers": source.count("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": source.count("context_length"),
        **rope_config(source, head_size),
    }
    turned = source.count("rope.dimension_count", head_size) / head_size
    if kind == "gpt_neox":
        return common | _gpt_neox(source, turned)
    common |= {
        "num_key_value_heads": source.count("attention.head_count_kv", heads),
        "rms_norm_eps": source.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
    }
    if kind not in ("qwen2", "phi3"):
        common["head_dim"] = head_size
    return common | _FAMILY.get(kind, lambda *_: {})(source, turned, head_size)


def _llama(source: Source, turned: float, head_size: int) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in source.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in source.shapes,
    }


def _phi3(source: Source, turned: float, head_size: int) -> dict[str, Any]:
    context = source.count("context_length")
    return {
        "partial_rotary_factor": turned,
        "original_max_position_embeddings": source.count(
            "rope.scaling.original_context_length", context
        ),
        "sliding_window": None,
        "pad_token_id": None,
    }


def _gemma(source: Source, turned: float, head_size: int) -> dict[str, Any]:
    activation = "gelu_pytorch_tanh"
    return {"hidden_act": activation, "hidden_activation": activation}


def _gemma_2_and_3(source: Source, turned: float, head_size: int) -> dict[str, Any]:
    layers = source.count("block_count")
    newer = source.architecture == "gemma3"
    # llama.cpp takes the largest of each family for an exception, by its layers.
    largest = layers == (62 if newer else 46)
    heads, hidden = source.count("attention.head_count"), source.count("embedding_length")
    every = 6 if newer else 2
    pattern = source.get("attention.sliding_window_pattern")
    if not isinstance(pattern, list) or len(pattern) != layers:
        pattern = [(layer + 1) % every != 0 for layer in range(layers)]
    window = source.get("attention.sliding_window")
    kinds = ["sliding_attention" if slides and window else "full_attention" for slides in pattern]
    return {
        **_gemma(source, turned, head_size),
        "query_pre_attn_scalar": hidden // heads if largest else head_size,
        "sliding_window": window or source.count("context_length"),
        "layer_types": kinds,
        "attn_logit_softcapping": None if newer else _cap(source, "attn"),
        "final_logit_softcapping": _cap(source, "final"),
    }


def _cap(source: Source, which: str) -> float | None:
    key = f"{which}_logit_softcapping"
    return source.number(key) if source.get(key) else None


_FAMILY: dict[str, Callable[[Source, float, int], dict[str, Any]]] = {
    "llama": _llama,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma_2_and_3,
    "gemma3_text": _gemma_2_and_3,
}


def _gpt2(source: Source, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "n_embd": hidden,
        "n_head": heads,
        "n_layer": source.count("block_count"),
        "n_inner": source.count("feed_forward_length"),
        "n_positions": source.shape("position_embd.weight")[0],
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gpt_neox(source: Source, turned: float) -> dict[str, Any]:
    return {
        "layer_norm_eps": source.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": bool(source.get("use_parallel_residual", True)),
        "rotary_pct": turned,
        "rotary_emb_base": source.number("rope.freq_base", 10000.0),
        "hidden_act": "gelu",
    }


def _short(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
