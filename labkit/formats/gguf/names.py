"""What Hugging Face and GGUF call the same tensor, and what llama.cpp wants changed in it.

    model.layers.3.self_attn.q_proj.weight  ->  blk.3.attn_q.weight, its rows reordered
    model.embed_tokens.weight               ->  token_embd.weight

Source: llama.cpp's converters (conversion/) and its loaders (src/models/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from labkit.core.errors import ModelError

# "rope_q", "rope_k": rows in the order of llama.cpp's RoPE; "qkv_by_head": q, k and v of all heads
# one after another; "transpose": [in, out] -> [out, in]; "plus_one": Gemma's norms multiply by
# (1 + weight), llama.cpp's by what is in the file.
Change = Literal["none", "rope_q", "rope_k", "qkv_by_head", "transpose", "plus_one"]

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Naming:
    """The names of one architecture's modules; a tensor is one of them and .weight or .bias.

    Args:
        model_type: of the Hugging Face config.
        architecture: GGUF's word for it.
        outer: modules outside of the blocks, Hugging Face -> GGUF.
        prefix: of the blocks, "model.layers".
        block: modules of a block, Hugging Face -> GGUF.
        changes: what is done to a tensor, by GGUF's name of its module.
        changed: which of its tensors the changes concern.
    """

    model_type: str
    architecture: str
    outer: Mapping[str, str]
    prefix: str
    block: Mapping[str, str]
    changes: Mapping[str, Change] = field(default_factory=dict)
    changed: tuple[str, ...] = ("weight", "bias")

    def to_gguf(self, name: str) -> str:
        """GGUF's name of a tensor. Raises ModelError for one that llama.cpp has no place for."""
        module, _, own = name.rpartition(".")
        found = self.outer.get(module)
        if found is None and module.startswith(f"{self.prefix}."):
            index, _, inner = module.removeprefix(f"{self.prefix}.").partition(".")
            if index.isdecimal() and inner in self.block:
                found = f"blk.{index}.{self.block[inner]}"
        if found is None or own not in ("weight", "bias"):
            raise ModelError(
                f"llama.cpp's {self.architecture} has no place for it",
                where=name,
                remedy="Merge adapters, or give a plain model of this family.",
            )
        return f"{found}.{own}"

    def to_hugging_face(self, name: str) -> str:
        """Hugging Face's name of a tensor. Raises ModelError for one that has none."""
        module, _, own = name.rpartition(".")
        # Where two spellings lead to one name, the last is the one of files.
        outer = {ours: theirs for theirs, ours in self.outer.items()}
        block = {ours: theirs for theirs, ours in self.block.items()}
        place = _BLOCK.fullmatch(module)
        if own in ("weight", "bias"):
            if module in outer:
                return f"{outer[module]}.{own}"
            if place and place[2] in block:
                return f"{self.prefix}.{place[1]}.{block[place[2]]}.{own}"
        raise ModelError(
            f"{self.model_type} models have no such tensor",
            where=name,
            remedy="labkit reads files of the plain architecture, without adapters or experts.",
        )

    def change(self, name: str) -> Change:
        """What is done to the tensor with this name in GGUF."""
        module, _, own = name.rpartition(".")
        place = _BLOCK.fullmatch(module)
        kind = self.changes.get(place[2] if place else module, "none")
        return kind if own in self.changed else "none"


_LLAMA_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_GATED = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_TWO_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_FOUR_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def _llama_like(
    model_type: str,
    architecture: str,
    norms: Mapping[str, str] = _TWO_NORMS,
    changes: Mapping[str, Change] | None = None,
) -> Naming:
    block = {**_ATTENTION, **_GATED, **norms}
    return Naming(model_type, architecture, _LLAMA_OUTER, "model.layers", block, changes or {})


def _gemma(model_type: str, architecture: str, norms: Mapping[str, str], *, head: bool) -> Naming:
    changes: dict[str, Change] = dict.fromkeys([*norms.values(), "output_norm"], "plus_one")
    outer = {name: ours for name, ours in _LLAMA_OUTER.items() if head or ours != "output"}
    block = {**_ATTENTION, **_GATED, **norms}
    return Naming(model_type, architecture, outer, "model.layers", block, changes, ("weight",))


_ROPE: dict[str, Change] = {"attn_q": "rope_q", "attn_k": "rope_k"}
_PHI3 = Naming(
    "phi3",
    "phi3",
    _LLAMA_OUTER,
    "model.layers",
    {
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        **_TWO_NORMS,
    },
)
_GPT2 = Naming(
    "gpt2",
    "gpt2",
    {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
    },
    "transformer.h",
    {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "transpose"),
    ("weight",),
)
_GPT_NEOX = Naming(
    "gpt_neox",
    "gptneox",
    {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "lm_head": "output",  # transformers 5's word, in memory
        "embed_out": "output",
    },
    "gpt_neox.layers",
    {
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    {"attn_qkv": "qkv_by_head"},
)

NAMINGS: dict[str, Naming] = {
    naming.model_type: naming
    for naming in (
        _llama_like("llama", "llama", changes=_ROPE),
        _llama_like("mistral", "llama", changes=_ROPE),
        _llama_like("qwen2", "qwen2"),
        _llama_like("qwen3", "qwen3", {**_TWO_NORMS, **_HEAD_NORMS}),
        _gemma("gemma", "gemma", _TWO_NORMS, head=False),
        _gemma("gemma2", "gemma2", _FOUR_NORMS, head=False),
        _gemma("gemma3_text", "gemma3", {**_FOUR_NORMS, **_HEAD_NORMS}, head=True),
        _PHI3,
        _GPT2,
        _GPT_NEOX,
    )
}

# Architectures that labkit walks and llama.cpp cannot run.
_WITHOUT = {"opt": "llama.cpp has no OPT among its architectures, so no program would run the file"}


def naming_of(model_type: object, where: str = "") -> Naming:
    """The names of a Hugging Face `model_type`; `where` it was found.

    Raises ModelError for an architecture that labkit does not know or llama.cpp does not run.
    """
    found = NAMINGS.get(str(model_type))
    if found is None:
        why = _WITHOUT.get(str(model_type), "labkit does not know how GGUF stores it")
        raise ModelError(
            f"{model_type!r} models cannot become GGUF: {why}",
            where=where,
            remedy=f"Supported: {', '.join(NAMINGS)}.",
        )
    return found


def naming_for(architecture: object, where: str = "") -> Naming:
    """The names of a GGUF architecture ("llama" stands for Mistral's models too).

    Raises ModelError for one that labkit does not know.
    """
    for naming in NAMINGS.values():
        if naming.architecture == architecture:
            return naming
    known = ", ".join(dict.fromkeys(naming.architecture for naming in NAMINGS.values()))
    raise ModelError(
        f"architecture {str(architecture)[:80]!r} is none that labkit reads",
        where=where,
        remedy=f"Supported: {known}.",
    )
