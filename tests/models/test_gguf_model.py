"""A model by way of a GGUF file: the file's weights, whatever the family calls its parameters."""

import pytest
import torch
from tiny_models import tiny, tokens

from labkit.models.gguf_model import through_gguf

IDS = tokens(2, 12)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llama", "llama_gqa_tied", "gpt2", "gpt_neox", "gemma"])
def test_f32_changes_nothing_and_q8_little(family):
    model = tiny(family)
    before = {name: value.clone() for name, value in model.named_parameters()}
    same, conversion = through_gguf(model, "F32")
    assert torch.allclose(logits(same), logits(model), atol=1e-6)
    assert conversion.file_type == "F32" and not conversion.path.exists()
    close, _ = through_gguf(model, "Q8_0")
    error = (logits(close) - logits(model)).norm() / logits(model).norm()
    assert 0 < error < 0.02
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
