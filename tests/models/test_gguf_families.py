"""Every family through GGUF: llama.cpp computes its logits, and it comes back to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens

from labkit.core.errors import ModelError
from labkit.formats.gguf.reader import GgufFile
from labkit.models.from_gguf import from_gguf
from labkit.models.loading import load
from labkit.models.to_gguf import to_gguf
from labkit.peers.llama_cpp import LlamaCpp

RUN = [family for family in FAMILIES if family != "opt"]
# ggml reads GELU from a table of float16 values: the largest logits are about 6.
TOLERANCE = {"gemma": 3e-3, "gemma2": 3e-3, "gemma3_text": 3e-3, "gpt2": 3e-3, "gpt_neox": 3e-3}
EXACT = 2e-5


@torch.no_grad()
def largest_difference(
    model: torch.nn.Module, path: Path, length: int = 24, context: int = 256
) -> float:
    ids = tokens(1, length)
    ours = _eager(model)(ids).logits[0].numpy()
    with LlamaCpp(path, context) as llama:
        return float(np.abs(llama.logits(ids[0].tolist()) - ours).max())


@pytest.mark.parametrize("family", RUN)
def test_llama_cpp_computes_the_same_logits(family: str, tmp_path: Path) -> None:
    changes = {"sliding_window": None} if family == "mistral" else {}
    model = tiny(family, **changes)
    done = to_gguf((model, None), tmp_path / "model.gguf", "F32")
    assert largest_difference(model, done.path) < TOLERANCE.get(family, EXACT)
    assert done.nbytes == done.path.stat().st_size


@pytest.mark.parametrize("family", RUN)
def test_it_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    to_gguf((model, None), tmp_path / "model.gguf", "F32")
    from_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = _load(tmp_path / "back")
    ids = tokens(2, 8)  # within Mistral's window, which GGUF does not keep
    assert torch.equal(_eager(model)(ids).logits, back(ids).logits)
    for ours, theirs in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        name, weight = ours
        if family.startswith("gemma") and "norm" in name:  # 1 + w is kept, and that is what counts
            assert torch.equal(weight + 1.0, theirs[1] + 1.0)
        else:
            assert torch.equal(weight, theirs[1]), name


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"head_dim": 32}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 8}),
        ("gemma2", {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}),
        ("gemma2", {"num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 3}),
        ("gemma3_text", {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}),
        ("gemma3_text", {"final_logit_softcapping": 30.0, "tie_word_embeddings": False}),
        ("gpt2", {"intermediate_size": 96, "tie_word_embeddings": False}),
        ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
        ("gpt_neox", {"tie_word_embeddings": True}),
        ("phi3", {"num_key_value_heads": 2, "tie_word_embeddings": True, "sliding_window": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_settings_that_change_the_function(
    family: str, changes: dict[str, object], tmp_path: Path
) -> None:
    model = tiny(family, **changes)
    if "layer_types" in changes and "layer_types" not in type(model.config)().to_dict():
        pytest.skip("this version of transformers cannot choose the layers that slide")
    to_gguf((model, None), tmp_path / "model.gguf", "F32")
    assert largest_difference(model, tmp_path / "model.gguf") < TOLERANCE.get(family, EXACT)
    from_gguf(tmp_path / "model.gguf", tmp_path / "back")
    ids = tokens(2, 8)
    assert torch.equal(model(ids).logits, _load(tmp_path / "back")(ids).logits)


ROPES = {
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("kind", ROPES)
def test_long_contexts(kind: str, tmp_path: Path) -> None:
    scaling = {"rope_type": kind, "type": kind, **ROPES[kind]}
    changes = {"rope_scaling": scaling, "max_position_embeddings": 128}
    if kind == "llama3":
        changes |= {"head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 65536}
    model = tiny("llama", **changes)
    done = to_gguf((model, None), tmp_path / "model.gguf", "F32")
    assert largest_difference(model, done.path, length=48) < 1e-4
    from_gguf(done.path, tmp_path / "back")
    ids = tokens(1, 48)
    assert torch.allclose(model(ids).logits, _load(tmp_path / "back")(ids).logits, atol=1e-5)


def test_longrope_short_and_long(tmp_path: Path) -> None:
    scaling = {"type": "longrope"}
    scaling |= {"long_factor": [4.0] * 8, "short_factor": [1.5] * 8}
    original = {"original_max_position_embeddings": 256}
    changes = {"rope_scaling": scaling, "max_position_embeddings": 512, **original}
    model = tiny("phi3", **changes)
    done = to_gguf((model, None), tmp_path / "model.gguf", "F32")
    # llama.cpp chooses by its context, torch by the text.
    assert any("size of the context" in note for note in done.notes)
    assert largest_difference(model, done.path, length=48, context=256) < 1e-4
    assert largest_difference(model, done.path, length=300, context=512) < 1e-4
    from_gguf(done.path, tmp_path / "back")
    back = _load(tmp_path / "back")
    for length in (48, 300):
        ids = tokens(1, length)
        assert torch.allclose(model(ids).logits, back(ids).logits, atol=1e-5)


def test_a_sliding_window_that_llama_cpp_does_not_know_is_said(tmp_path: Path) -> None:
    model = tiny("mistral")
    done = to_gguf((model, None), tmp_path / "model.gguf", "F32")
    assert any("sliding window" in note and "8 tokens" in note for note in done.notes)
    assert largest_difference(model, done.path, length=8) < EXACT
    assert largest_difference(model, done.path, length=16) > 0.1


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    done = to_gguf((tiny("llama_gqa_tied"), None), tmp_path / "tied.gguf", "F32")
    assert "output.weight" not in {tensor.name for tensor in done.tensors}
    apart = to_gguf((tiny("llama"), None), tmp_path / "apart.gguf", "F32")
    assert "output.weight" in {tensor.name for tensor in apart.tensors}


def test_llama_cpp_reads_the_settings(tmp_path: Path) -> None:
    to_gguf((tiny("llama_gqa_tied"), None), tmp_path / "model.gguf", "Q8_0")
    with GgufFile(tmp_path / "model.gguf") as file:
        said = file.metadata
    assert said["general.architecture"] == "llama"
    assert said["general.file_type"] == 7
    assert said["general.quantization_version"] == 2
    assert said["llama.attention.head_count"] == 4
    assert said["llama.attention.head_count_kv"] == 2
    assert said["llama.rope.dimension_count"] == 16


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("opt", {}, "no OPT"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias"),
        ("qwen3", {"attention_bias": True}, "bias in attention's output"),
        ("gemma2", {"attention_bias": True}, "bias in attention's output"),
        ("qwen2", {"head_dim": 32}, "4 heads of 32 rows"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, object], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=what):
        to_gguf((tiny(family, **changes), None), tmp_path / "model.gguf", "F32")
    assert not any(tmp_path.iterdir())


def _load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return _eager(AutoModelForCausalLM.from_pretrained(folder).eval())


def _eager(model: torch.nn.Module) -> torch.nn.Module:
    """Attention in torch's plain way: fused ones leave Gemma 2's soft cap out."""
    model.config._attn_implementation = "eager"
    return model


def test_the_bundled_model_to_a_thousandth(tmp_path: Path) -> None:
    model, _ = load()
    to_gguf((model, None), tmp_path / "model.gguf", "F32")
    ids = torch.randint(0, 4096, (1, 128), generator=torch.Generator().manual_seed(0))
    ours = model(ids).logits[0].detach().numpy()
    with LlamaCpp(tmp_path / "model.gguf", 256) as llama:
        assert np.abs(llama.logits(ids[0].tolist()) - ours).max() < 1e-3
        likeliest = llama.generate(ids[0].tolist(), 8)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    assert likeliest == expected[0, 128:].tolist()
