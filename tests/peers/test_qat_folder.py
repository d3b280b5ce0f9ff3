"""What training exports, transformers runs: the rounded inputs too."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.scheme import QuantScheme
from labkit.formats import compressed_tensors
from labkit.peers import call
from labkit.training.convert import convert
from labkit.training.prepare import QatConfig, prepare
from labkit.training.trainer import TrainSettings, train

pytestmark = pytest.mark.peers

W4, W8 = (QuantScheme(bits, narrow_range=False) for bits in (4, 8))
TOKEN8 = QuantScheme(8, True, "token", narrow_range=False)
STATIC8 = QuantScheme(8, True, "tensor", narrow_range=False)
CONFIGS = {
    "W4A8": QatConfig(W4, TOKEN8),
    "W8A8 static": QatConfig(W8, STATIC8),
    "W8A8 clipped": QatConfig(W8, STATIC8, activations="pact"),
}


def test_trained_folders_give_transformers_the_same_logits(need_peer, tmp_path):
    """Up to codes that flip: 1/127 of a row's largest input here and there, below 1 % in all."""
    need_peer("compressed_tensors")
    ids, models = tokens(3, 12), {}
    for name, config in CONFIGS.items():
        models[name] = prepare(tiny("llama"), config, tell=lambda line: None)
        settings = TrainSettings(steps=3, warmup=1)
        train(models[name], lambda step: tokens(2, 13, seed=step), settings, teacher=tiny("llama"))
        compressed_tensors.save(convert(models[name]).checkpoint(), tmp_path / name)
    settings = {"folders": {name: str(tmp_path / name) for name in CONFIGS}}
    found, _ = call("compressed_tensors", "read_transformers", {"tokens": ids}, settings)
    for name, model in models.items():
        with torch.no_grad():
            expected = model(ids).logits
        difference = (found[f"{name}/logits"] - expected).norm() / expected.norm()
        assert float(difference) < 0.01, name
