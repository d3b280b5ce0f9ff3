"""The architectures, one entry each; `families.py` says what the words mean."""

from __future__ import annotations

from labkit.models.families import Family, FoldRule

_ATTENTION = (
    ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"),
    ("self_attn.o_proj",),
)
_GATED = (("mlp.up_proj", "mlp.gate_proj"), ("mlp.down_proj",))
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_INTO_ATTENTION = FoldRule("input_layernorm", _QKV, "self_attn", "norm")
_VALUE = FoldRule("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", "linear")
_UP = FoldRule("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj", "linear")
_GATE_AND_UP = ("mlp.gate_proj", "mlp.up_proj")


def _llama_like(name: str, norm: str = "post_attention_layernorm", offset: float = 0.0) -> Family:
    into_mlp = FoldRule(norm, _GATE_AND_UP, "mlp", "norm")
    rules = (_INTO_ATTENTION, _VALUE, into_mlp, _UP)
    return Family(name, (*_ATTENTION, *_GATED), rules, offset=offset)


_PHI3 = Family(
    "phi3",
    (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
    (
        FoldRule("input_layernorm", ("self_attn.qkv_proj",), "self_attn", "norm"),
        FoldRule(
            "self_attn.qkv_proj", ("self_attn.o_proj",), "self_attn.o_proj", "linear", "value"
        ),
        FoldRule("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp", "norm"),
        FoldRule("mlp.gate_up_proj", ("mlp.down_proj",), "mlp.down_proj", "linear", "upper"),
    ),
)
_GPT2 = Family(
    "gpt2",
    (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
    (
        FoldRule("ln_1", ("attn.c_attn",), "attn", "norm"),
        FoldRule("attn.c_attn", ("attn.c_proj",), "attn.c_proj", "linear", "value"),
        FoldRule("ln_2", ("mlp.c_fc",), "mlp", "norm"),
    ),
    never=("mlp.c_fc -> mlp.c_proj: a factor does not pass through GELU",),
)
_OPT = Family(
    "opt",
    (*_ATTENTION[:1], ("self_attn.out_proj",), ("fc1",), ("fc2",)),
    (
        FoldRule("self_attn_layer_norm", _QKV, "self_attn", "norm"),
        FoldRule("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj", "linear"),
        FoldRule("final_layer_norm", ("fc1",), "fc1", "norm"),
        FoldRule("fc1", ("fc2",), "fc2", "linear", through="activation_fn"),
    ),
)
_GPT_NEOX = Family(
    "gpt_neox",
    (
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
    (
        FoldRule("input_layernorm", ("attention.query_key_value",), "attention", "norm"),
        FoldRule("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp", "norm"),
    ),
    never=(
        "attention.query_key_value -> attention.dense: queries, keys and values alternate by head",
        "mlp.dense_h_to_4h -> mlp.dense_4h_to_h: a factor does not pass through GELU",
    ),
)

FAMILIES: dict[str, Family] = {
    entry.name: entry
    for entry in (
        _llama_like("llama"),
        _llama_like("mistral"),
        _llama_like("qwen2"),
        _llama_like("qwen3"),
        _llama_like("gemma", offset=1.0),
        _llama_like("gemma2", "pre_feedforward_layernorm", 1.0),
        _llama_like("gemma3_text", "pre_feedforward_layernorm", 1.0),
        _PHI3,
        _GPT2,
        _OPT,
        _GPT_NEOX,
    )
}
