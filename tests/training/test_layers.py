"""Fake-quantized layers: the same parameters, rounded numbers, a bias that is left alone."""

import pytest
import torch
from leaves import gradients, leaf
from tiny_models import tiny
from torch import nn
from torch.ao import quantization as ao
from torch.ao.nn import qat
from torch.nn import functional

from labkit.core.errors import CalibrationError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.quantize import rtn
from labkit.training.fake_quant import FakeQuant
from labkit.training.layers import QatConv2d, QatEmbedding, QatLinear, exported_weight, rounders
from labkit.training.lsq import LearnedScale

# Asymmetric: a symmetric grid over the full range puts the largest weight of a row on a tie.
W4 = QuantScheme(4, False, "channel")
A8 = QuantScheme(8, False, "tensor")
TOKEN8 = QuantScheme(8, True, "token", narrow_range=False)


def config(weights: int) -> ao.QConfig:
    """torch's own QAT: weights of `weights` bits by channel, inputs untouched."""
    weight = ao.FakeQuantize.with_args(
        observer=ao.PerChannelMinMaxObserver,
        quant_min=0,
        quant_max=2**weights - 1,
        dtype=torch.quint8,
        qscheme=torch.per_channel_affine,
        ch_axis=0,
    )
    return ao.QConfig(activation=nn.Identity, weight=weight)


def almost_equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """But for weights next to a tie, which torch may round the other way."""
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_linear_trains_as_torchs_own():
    torch.manual_seed(0)
    layer = nn.Linear(24, 8)
    theirs = qat.Linear(24, 8, qconfig=config(4))
    theirs.load_state_dict(layer.state_dict(), strict=False)
    ours = QatLinear.from_float(layer, FakeQuant(W4))
    x, twin = leaf(5, 24), leaf(5, 24)
    a, b = ours(x), theirs(twin)
    assert almost_equal(a, b)
    for g, h in zip(
        gradients(a, x, ours.weight, ours.bias),
        gradients(b, twin, theirs.weight, theirs.bias),
        strict=True,
    ):
        assert almost_equal(g, h)


def test_convolution_trains_as_torchs_own():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    theirs = qat.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, qconfig=config(4))
    theirs.load_state_dict(layer.state_dict(), strict=False)
    ours = QatConv2d.from_float(layer, FakeQuant(W4))
    x, twin = leaf(2, 4, 7, 7), leaf(2, 4, 7, 7)
    a, b = ours(x), theirs(twin)
    assert almost_equal(a, b)
    for g, h in zip(gradients(a, x, ours.weight), gradients(b, twin, theirs.weight), strict=True):
        assert almost_equal(g, h)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_numbers_are_rounded_before_the_product_and_the_bias_never(granularity):
    scheme = QuantScheme(3, True, granularity, 8 if granularity == "group" else None)
    layer, x = nn.Linear(16, 4), torch.randn(2, 3, 16)
    ours = QatLinear.from_float(layer, FakeQuant(scheme), FakeQuant(TOKEN8), FakeQuant(TOKEN8))
    rounded_x = rtn.quantize(x, TOKEN8, scale_dtype=torch.float32).dequantize()
    rounded_w = rtn.quantize(layer.weight, scheme, scale_dtype=torch.float32).dequantize()
    y = functional.linear(rounded_x, rounded_w, layer.bias)
    expected = rtn.quantize(y, TOKEN8, scale_dtype=torch.float32).dequantize()
    assert torch.equal(ours(x), expected)


def test_parameters_are_the_same_objects():
    linear, table, conv = nn.Linear(8, 4), nn.Embedding(10, 8, padding_idx=0), nn.Conv2d(2, 3, 3)
    for layer, new in (
        (linear, QatLinear.from_float(linear, FakeQuant(W4))),
        (table, QatEmbedding.from_float(table, FakeQuant(W4))),
        (conv, QatConv2d.from_float(conv, FakeQuant(W4))),
    ):
        assert new.weight is layer.weight
        assert isinstance(new, type(layer)) and new.training == layer.training
    assert QatConv2d.from_float(conv, FakeQuant(W4)).bias is conv.bias


def test_an_embedding_looks_up_rounded_rows():
    table = nn.Embedding(10, 8, padding_idx=0)
    ours = QatEmbedding.from_float(table, LearnedScale.of_weight(table.weight, W4))
    ids = torch.tensor([[1, 4, 0], [9, 9, 2]])
    y = ours(ids)
    assert torch.equal(y.detach(), exported_weight(ours).dequantize()[ids])
    y.sum().backward()
    touched = set(table.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert touched <= {1, 2, 4, 9} and 9 in touched


def test_gpt2s_turned_layers_come_out_as_linear_ones():
    layer = tiny("gpt2").transformer.h[0].attn.c_attn
    ours, x = QatLinear.from_float(layer, FakeQuant(QuantScheme(8, True, "channel"))), leaf(2, 64)
    assert ours.weight.shape == layer.weight.T.shape
    assert torch.allclose(ours(x), layer(x), atol=0.2)


def test_what_cannot_leave_the_sum_is_refused():
    conv = nn.Conv2d(2, 4, 3)
    with pytest.raises(SchemeError, match="convolution"):
        QatConv2d.from_float(conv, FakeQuant(QuantScheme(4, True, "group", 3)))
    with pytest.raises(SchemeError, match="convolution"):
        QatConv2d.from_float(conv, FakeQuant(W4), FakeQuant(TOKEN8))
    with pytest.raises(SchemeError, match="max_norm"):
        QatEmbedding.from_float(nn.Embedding(4, 8, max_norm=1.0), FakeQuant(W4))


def test_a_static_input_needs_training_first():
    layer = nn.Linear(8, 4).eval()
    ours = QatLinear.from_float(layer, FakeQuant(W4), FakeQuant(A8, "moving"))
    with pytest.raises(CalibrationError):
        ours(torch.randn(2, 8))
    ours.train()(torch.randn(2, 8))
    assert ours.eval()(torch.randn(2, 8)).shape == (2, 4)
    assert set(rounders(ours)) == {"weight_quant", "input_quant"}
