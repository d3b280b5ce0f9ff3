"""FP8 models, loud keys, and what a rounded cache costs a model."""

from __future__ import annotations

import pytest
import torch

from labkit.core.errors import CalibrationError, ModelError, SchemeError, ShapeError
from labkit.core.float8_tensor import Float8Tensor
from labkit.evaluate.cache_losses import cached_logits, token_divergences, token_losses
from labkit.kernels import fp8_linear
from labkit.models.float8 import with_float8
from labkit.models.plant_key_outliers import plant_in_keys
from labkit.nn.float8_linear import Float8Linear
from labkit.nn.kv_cache import KVCache
from labkit.nn.kv_cache_rounded import RoundedCache
from labkit.nn.kv_cache_transformers import TransformersCache
from labkit.quantize.float8_activation import quantize_float8
from tests.tiny_models import tiny, tokens


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_the_layer_multiplies_codes(activations):
    torch.manual_seed(0)
    x, bias = torch.randn(5, 3, 32), torch.randn(16)
    weight = Float8Tensor.quantize(torch.randn(16, 32))
    layer = Float8Linear(weight, activations, bias)
    codes, scale = quantize_float8(x, activations)
    expected = fp8_linear(codes.float() * scale, weight, bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert layer(x.bfloat16()).dtype == torch.bfloat16 and "E4M3 (16, 32)" in repr(layer)
    static = Float8Linear(weight, bias=bias, scale=torch.tensor(1.0 / 448))
    torch.testing.assert_close(static(x), static(x.clamp(-1, 1)))


def test_a_model_in_fp8_stays_close():
    model, ids = tiny("llama_gqa_tied"), tokens(2, 16)
    exact = model(ids).logits
    for settings in (
        dict(),
        dict(activations="tensor", weights="tensor"),
        dict(activations="static", calibration=ids),
    ):
        got = with_float8(model, **settings)(ids).logits
        error = float((got - exact).square().mean() / exact.square().mean())
        assert 0 < error < 0.02
    assert torch.equal(model(ids).logits, exact)
    with pytest.raises(CalibrationError):
        with_float8(model, "static")
    with pytest.raises(SchemeError):
        with_float8(model, "dynamic")


@pytest.mark.parametrize("family", ["llama_gqa_tied", "qwen2"])
def test_loud_keys_say_the_same(family):
    model, ids = tiny(family), tokens(2, 16)
    loud = plant_in_keys(model, 64.0, (0, 3))
    torch.testing.assert_close(loud(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    caches = [KVCache.for_model(model, "fp8", 16, 2) for _ in range(2)]
    for one, cache in zip((model, loud), caches, strict=True):
        cached_logits(one, ids, lambda _, cache=cache: TransformersCache(cache))
    ratio = caches[1].keys(0) / caches[0].keys(0)
    assert ratio[..., [0, 3, 8, 11]].median() == 64
    for bad in (dict(factor=3.0), dict(factor=2.0, pairs=(99,))):
        with pytest.raises(SchemeError):
            plant_in_keys(model, **bad)
    for other in ("qwen3", "gpt2"):
        with pytest.raises(ModelError):
            plant_in_keys(tiny(other), 2.0)


def test_losses_and_divergences():
    model, ids = tiny("llama_gqa_tied"), tokens(3, 12)
    exact = cached_logits(model, ids)
    assert torch.equal(exact, torch.cat([model(part).logits for part in ids.split(2)])) or (
        (exact - model(ids).logits).abs().max() < 1e-4
    )
    same = TransformersCache(RoundedCache(lambda x: x, lambda x: x))
    kept = cached_logits(model, ids, lambda _: same, batch_size=3)
    torch.testing.assert_close(kept, exact, rtol=1e-4, atol=1e-4)
    assert same.get_seq_length() == 12 and len(same) == 2
    same.reset()
    assert same.get_seq_length() == 0
    losses = token_losses(exact, ids)
    assert float(losses.mean()) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)
    noisy = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    apart = token_divergences(exact, noisy)
    assert apart.shape == ids.shape and (apart > 0).all()
    assert token_divergences(exact, exact).abs().max() < 1e-6
    with pytest.raises(ShapeError):
        cached_logits(model, ids[0])
