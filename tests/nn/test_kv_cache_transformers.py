"""transformers generates with our cache; in float16 it writes what its own cache writes."""

from __future__ import annotations

import pytest
import torch

from labkit.core.errors import SchemeError, ShapeError
from labkit.nn.kv_cache import KINDS, KVCache
from labkit.nn.kv_cache_transformers import TransformersCache
from tests.tiny_models import tiny, tokens


def _generate(model, ids, **settings):
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        **settings,
    )


@pytest.mark.parametrize("family", ["llama_gqa_tied", "qwen3", "gpt_neox", "gemma3_text"])
def test_float16_writes_what_transformers_writes(family):
    model, ids = tiny(family), tokens(2, 8)
    cache = TransformersCache(KVCache.for_model(model, "fp16", capacity=20, batch=2))
    assert torch.equal(_generate(model, ids, past_key_values=cache), _generate(model, ids))
    assert cache.cache.length == 19  # the last token is never read


@pytest.mark.parametrize("kind", KINDS)
def test_logits_step_by_step_and_at_once(kind):
    """What one pass over all tokens sees is what decoding sees (int4: but for the newest run)."""
    model, ids = tiny("llama_gqa_tied"), tokens(2, 24)
    exact = model(ids).logits
    cache = KVCache.for_model(model, kind, capacity=24, batch=2)
    at_once = model(ids, past_key_values=TransformersCache(cache)).logits
    cache.reset()
    adapter = TransformersCache(cache)
    steps = [model(ids[:, i : i + 1], past_key_values=adapter).logits for i in range(24)]
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once, rtol=1e-4, atol=1e-4)
    error = float((at_once - exact).square().mean() / exact.square().mean())
    assert 0 < error < {"fp16": 1e-6, "int8": 1e-3, "fp8": 1e-2, "int4": 0.1}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_beams(kind):
    model, ids = tiny("llama_gqa_tied"), tokens(1, 8)
    cache = TransformersCache(KVCache.for_model(model, kind, capacity=24, batch=3))
    out = _generate(model, ids, past_key_values=cache, num_beams=3)
    assert out.shape == (1, 20)
    if kind == "fp16":
        assert torch.equal(out, _generate(model, ids, num_beams=3))


def test_too_long_and_taken_back():
    model, ids = tiny("llama"), tokens(1, 8)
    cache = TransformersCache(KVCache.for_model(model, "int8", capacity=10))
    with pytest.raises(ShapeError, match="capacity of 10"):
        _generate(model, ids, past_key_values=cache)
    with pytest.raises(SchemeError, match="taken back"):
        cache.crop(1)
    cache.reset()
    assert cache.get_seq_length() == 0 and len(cache) == 2 and not cache.is_croppable
