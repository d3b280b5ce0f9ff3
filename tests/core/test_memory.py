"""Memory arithmetic, against transformers' own models, caches and live tensors."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from labkit.core.errors import SchemeError
from labkit.core.gpus import GPUS
from labkit.core.memory import (
    GB,
    GIB,
    Runtime,
    activation_bytes,
    estimate,
    fits,
    gb,
    gib,
    kv_cache_bytes,
    total_bytes,
    weight_bytes,
)
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape

SMALL = ModelShape("small", 3, 512, 1536, heads=8, kv_heads=2, head_dim=64, vocab=4096)


def small_llama(attention: str = "sdpa", ffn: int = SMALL.ffn) -> Any:
    config = LlamaConfig(
        hidden_size=SMALL.hidden,
        intermediate_size=ffn,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads,
        vocab_size=SMALL.vocab,
    )
    return AutoModelForCausalLM.from_config(
        config, torch_dtype=torch.bfloat16, attn_implementation=attention
    ).eval()


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, those known beforehand left out."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in self._alive:
                    self._alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def measured_peak(model: Any, batch: int, tokens: int, logits_to_keep: int) -> int:
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    known = [*model.parameters(), *model.buffers(), ids]
    with torch.inference_mode(), PeakBytes(known) as counter:
        model(ids, use_cache=False, logits_to_keep=logits_to_keep)
    return counter.peak


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    shape = MODEL_SHAPES[name]
    assert shape.parameters + shape.published_buffers == shape.published_parameters


@pytest.mark.parametrize("name", ["llama-2-7b", "mistral-7b", "qwen2.5-0.5b", "qwen2.5-7b"])
def test_parameter_counts_equal_the_models_of_transformers(name: str) -> None:
    shape = MODEL_SHAPES[name]
    sizes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }
    from transformers import AutoConfig

    kind = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2"}[
        name.split("-")[0].split(".")[0]
    ]
    config = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    linears = [m for n, m in model.named_modules() if type(m) is torch.nn.Linear and n != "lm_head"]
    assert sum(m.weight.numel() for m in linears) == shape.linear_parameters


def test_weights_of_seven_billion_parameters() -> None:
    assert weight_bytes(7_000_000_000, 4) == 3_500_000_000
    assert gb(weight_bytes(7_000_000_000, 16)) == 14.0
    assert gib(weight_bytes(7_000_000_000, 16)) == pytest.approx(13.04, abs=0.005)
    assert (GB, GIB) == (1_000_000_000, 1_073_741_824)


def test_weights_at_a_fraction_of_a_bit_are_whole_bytes() -> None:
    assert weight_bytes(1000, 4.125) == 516  # 515.625
    assert weight_bytes(1, 2) == 1


def test_weights_with_their_embeddings_at_16_bits() -> None:
    shape = MODEL_SHAPES["qwen2.5-0.5b"]
    state = shape.linear_parameters // 2 + 2 * (shape.parameters - shape.linear_parameters)
    assert weight_bytes(shape, 4, embedding_bits=16) == state
    # The small model's large vocabulary: more than half of a 4-bit file is embedding.
    assert 2 * shape.embedding_parameters > state / 2
    assert weight_bytes(shape, 16, embedding_bits=16) == weight_bytes(shape, 16)


def test_cache_equals_the_cache_of_transformers() -> None:
    cache = DynamicCache()
    with torch.inference_mode():
        small_llama()(torch.zeros(2, 37, dtype=torch.long), past_key_values=cache, use_cache=True)
    layers = getattr(cache, "layers", None)
    tensors = (
        [t for layer in layers for t in (layer.keys, layer.values)]
        if layers is not None
        else [*cache.key_cache, *cache.value_cache]
    )
    assert kv_cache_bytes(SMALL, context=37, batch=2) == sum(t.nbytes for t in tensors)


def test_cache_of_known_models() -> None:
    # 512 KiB a token without grouped queries, 128 KiB with a quarter of the heads.
    assert kv_cache_bytes(MODEL_SHAPES["llama-2-7b"], 1) == 512 * 1024
    assert kv_cache_bytes(MODEL_SHAPES["llama-3-8b"], 1) == 128 * 1024
    assert gib(kv_cache_bytes(MODEL_SHAPES["llama-2-7b"], 4096, batch=4)) == 8.0
    assert kv_cache_bytes(MODEL_SHAPES["mistral-7b"], 1, bits=8) == 64 * 1024


@pytest.mark.parametrize(("batch", "tokens"), [(1, 256), (2, 128), (1, 1)])
def test_activations_equal_live_tensors(batch: int, tokens: int) -> None:
    measured = measured_peak(small_llama(), batch, tokens, logits_to_keep=1)
    assert activation_bytes(SMALL, batch * tokens, batch) == pytest.approx(measured, rel=0.02)


def test_activations_of_all_logits_equal_live_tensors() -> None:
    measured = measured_peak(small_llama(), 1, 256, logits_to_keep=0)
    assert activation_bytes(SMALL, 256, logits_tokens=256) == pytest.approx(measured, rel=0.1)


def test_activations_with_scores_equal_live_tensors() -> None:
    measured = measured_peak(small_llama("eager"), 1, 256, logits_to_keep=1)
    assert activation_bytes(SMALL, 256, score_context=256) == pytest.approx(measured, rel=0.05)


def test_activations_of_a_narrow_mlp_are_those_of_attention() -> None:
    narrow = ModelShape("narrow", 3, 512, 256, heads=8, kv_heads=2, head_dim=64, vocab=4096)
    measured = measured_peak(small_llama(ffn=256), 1, 256, logits_to_keep=1)
    # Releases before transformers 5 hold the keys and values again, once for every query head.
    repeated = 2 * 256 * narrow.heads * narrow.head_dim * 2
    expected = activation_bytes(narrow, 256)
    assert 0.98 * expected <= measured <= 1.02 * (expected + repeated)


def test_an_estimate_is_its_parts() -> None:
    shape = MODEL_SHAPES["llama-3-8b"]
    runtime = Runtime(kv_bits=8, embedding_bits=16, prefill_tokens=512, overhead_gib=0.5)
    parts = estimate(shape, 4.5, context=8192, batch=2, runtime=runtime)
    assert parts.weights == weight_bytes(shape, 4.5, 16)
    assert parts.kv_cache == kv_cache_bytes(shape, 8192, 2, bits=8)
    assert parts.activations == activation_bytes(shape, 512, logits_tokens=2)
    assert parts.overhead == GIB // 2
    assert parts.total == total_bytes(shape, 4.5, 8192, 2, runtime)
    assert parts.total == parts.weights + parts.kv_cache + parts.activations + parts.overhead


@given(
    st.sampled_from(sorted(MODEL_SHAPES)),
    st.floats(2, 32),
    st.integers(1, 131072),
    st.integers(1, 64),
)
def test_fits_changes_exactly_at_the_total(
    name: str, bits: float, context: int, batch: int
) -> None:
    shape = MODEL_SHAPES[name]
    total = total_bytes(shape, bits, context, batch)
    assert fits(shape, bits, total / GIB, context, batch)
    assert not fits(shape, bits, (total - 1) / GIB, context, batch)
    assert total_bytes(shape, bits, context, batch + 1) > total
    assert total_bytes(shape, bits, context + 1, batch) > total


def test_well_known_answers() -> None:
    llama70 = MODEL_SHAPES["llama-2-70b"]
    assert not fits(llama70, 16, GPUS["H100"].gib, context=4096)
    assert fits(llama70, 4.25, GPUS["L40S"].gib, context=4096)
    assert not fits(llama70, 4.25, GPUS["RTX 4090"].gib, context=4096)
    assert fits(MODEL_SHAPES["llama-2-7b"], 16, GPUS["RTX 4090"].gib, context=4096)
    assert not fits(MODEL_SHAPES["llama-2-7b"], 16, GPUS["T4"].gib, context=4096)


def test_gpus_hold_no_more_than_the_unit_explains() -> None:
    for gpu in GPUS.values():
        # A maker's "GB" lies between 10**9 bytes and 2**30 bytes; error correction takes 6.25 %.
        assert 0.93 * gpu.advertised_gb * GB <= gpu.mib * 2**20 <= 1.01 * gpu.advertised_gb * GIB


@pytest.mark.parametrize(
    "call",
    [
        lambda: weight_bytes(1000, 0),
        lambda: weight_bytes(1000, float("nan")),
        lambda: kv_cache_bytes(SMALL, 0),
        lambda: kv_cache_bytes(SMALL, 10, batch=-1),
        lambda: activation_bytes(SMALL, 0),
        lambda: fits(SMALL, 4, 0, 10),
    ],
)
def test_sizes_that_are_not_positive_are_refused(call: Any) -> None:
    with pytest.raises(SchemeError, match="positive"):
        call()


def test_embedding_bits_need_a_shape() -> None:
    with pytest.raises(SchemeError, match="shape"):
        weight_bytes(1000, 4, embedding_bits=16)
