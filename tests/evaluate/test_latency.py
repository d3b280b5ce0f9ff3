"""Latency: what is timed, not how long it takes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from labkit.evaluate.latency import latency


def test_counts_and_rates_agree():
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=50,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    lengths = []
    forward = model.forward
    model.forward = lambda **kw: lengths.append(kw["input_ids"].shape) or forward(**kw)
    result = latency(model, prompt_tokens=9, new_tokens=3, rounds=2)
    assert lengths == [torch.Size([1, 9]), *[torch.Size([1, 1])] * 3] * 3
    assert result.prefill_seconds > 0
    assert result.tokens_per_second * result.seconds_per_token == pytest.approx(1, rel=1e-12)
