"""Training that starts at the codes of a method without training."""

import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.errors import ModelError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods.gptq import Gptq
from labkit.training.convert import convert
from labkit.training.prepare import QatConfig, prepare
from labkit.training.start import start_from

W3 = QuantScheme(3, True, "channel", narrow_range=False)
GROUPS = QuantScheme(4, False, "group", 32)


def prepared(scheme: QuantScheme, scales: str = "learned") -> torch.nn.Module:
    return prepare(tiny("llama"), QatConfig(scheme, scales=scales), tell=lambda line: None)


@pytest.mark.parametrize("scheme", [W3, GROUPS], ids=str)
def test_the_first_step_starts_at_gptqs_own_model(scheme):
    solved = quantize_blockwise(tiny("llama"), Gptq(scheme), tokens(4, 16))
    model = prepared(scheme)
    start_from(model, solved.layers)
    ids = tokens(2, 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, solved.model(ids).logits)
    for name, layer in convert(model).layers.items():
        assert torch.equal(layer.codes, solved.layers[name].codes)
    model(ids).logits.sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_failures_say_what_to_do():
    solved = quantize_blockwise(tiny("llama"), Gptq(W3), tokens(4, 16)).layers
    with pytest.raises(SchemeError, match="that is trained"):
        start_from(prepared(GROUPS), solved)
    with pytest.raises(ModelError, match="learned scales"):
        start_from(prepared(W3, "minmax"), solved)
    shuffled = quantize_blockwise(tiny("llama"), Gptq(GROUPS, act_order=True), tokens(4, 16))
    with pytest.raises(SchemeError, match="act_order"):
        start_from(prepared(GROUPS), shuffled.layers)
