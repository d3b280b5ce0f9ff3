"""Batch norms: folded for inference, and trained as torch.ao trains them."""

import copy

import pytest
import torch
from leaves import gradients, leaf
from torch import nn
from torch.ao import quantization as ao
from torch.ao.nn.intrinsic import qat

from labkit.core.errors import CalibrationError, ModelError, NonFiniteError, SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.training.batch_norm import QatConvBn2d, fold_batch_norm
from labkit.training.fake_quant import FakeQuant

# Asymmetric: a symmetric grid over the full range puts the largest weight of a row on a tie.
W4 = QuantScheme(4, False, "channel")


def lived(norm: nn.Module, seed: int = 0) -> nn.Module:
    """A norm that has seen data and learned something, one channel of it negative."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.2, 4, generator=generator)
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    norm.num_batches_tracked.fill_(7)
    return norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_folded_convolution_gives_the_same(bias, mode):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias, padding_mode=mode).eval()
    norm, x = lived(nn.BatchNorm2d(6)).eval(), torch.randn(2, 4, 9, 9)
    assert torch.allclose(fold_batch_norm(conv, norm)(x), norm(conv(x)), atol=1e-5)


def test_a_folded_linear_layer_gives_the_same():
    linear, norm, x = nn.Linear(5, 6), lived(nn.BatchNorm1d(6)).eval(), torch.randn(7, 5)
    assert torch.allclose(fold_batch_norm(linear, norm)(x), norm(linear(x)), atol=1e-5)
    plain = nn.BatchNorm1d(6, affine=False).eval()
    plain.running_var.fill_(4.0)
    assert torch.allclose(fold_batch_norm(linear, plain)(x), plain(linear(x)), atol=1e-5)


def pair() -> tuple[QatConvBn2d, qat.ConvBn2d]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, padding=1, bias=False), lived(nn.BatchNorm2d(5))
    weight = ao.FakeQuantize.with_args(
        observer=ao.PerChannelMinMaxObserver,
        quant_min=0,
        quant_max=15,
        dtype=torch.quint8,
        qscheme=torch.per_channel_affine,
        ch_axis=0,
    )
    theirs = qat.ConvBn2d(
        3, 5, 3, padding=1, bias=False, qconfig=ao.QConfig(activation=nn.Identity, weight=weight)
    )
    theirs.weight = nn.Parameter(conv.weight.detach().clone())
    theirs.bn = copy.deepcopy(norm)
    return QatConvBn2d.from_float(conv, norm, FakeQuant(W4)), theirs


def test_training_is_torchs_own_forward_backward_and_statistics():
    ours, theirs = pair()
    x, twin = leaf(4, 3, 6, 6), leaf(4, 3, 6, 6)
    a, b = ours(x), theirs(twin)
    assert torch.allclose(a, b, atol=1e-4)
    mine = gradients(a, x, ours.weight, ours.norm.weight, ours.norm.bias)
    other = gradients(b, twin, theirs.weight, theirs.bn.weight, theirs.bn.bias)
    for g, h in zip(mine, other, strict=True):
        assert torch.allclose(g, h, atol=1e-3, rtol=1e-3)
    assert torch.allclose(ours.norm.running_mean, theirs.bn.running_mean, atol=1e-5)
    assert torch.allclose(ours.norm.running_var, theirs.bn.running_var, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_evaluation_is_the_folded_layer(bias):
    conv = nn.Conv2d(3, 5, 3, bias=bias)
    ours = QatConvBn2d.from_float(conv, lived(nn.BatchNorm2d(5)), FakeQuant(W4)).eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(ours(x), ours.folded()(x), atol=1e-6)
    ours.train().freeze_statistics()
    before = ours.norm.running_mean.clone()
    assert torch.allclose(ours(x), ours.folded()(x), atol=1e-6)
    assert torch.equal(ours.norm.running_mean, before)


def test_a_dead_channel_does_not_divide_by_zero():
    norm = lived(nn.BatchNorm2d(5))
    with torch.no_grad():
        norm.weight[2] = 0
    ours = QatConvBn2d.from_float(nn.Conv2d(3, 5, 3), norm, FakeQuant(W4))
    y = ours(torch.randn(2, 3, 6, 6))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(ours.weight.grad).all()


def test_failures_say_what_to_do():
    conv = nn.Conv2d(3, 5, 3)
    with pytest.raises(CalibrationError, match="no batch"):
        fold_batch_norm(conv, nn.BatchNorm2d(5))
    with pytest.raises(CalibrationError, match="no running statistics"):
        fold_batch_norm(conv, nn.BatchNorm2d(5, track_running_stats=False))
    with pytest.raises(CalibrationError, match="no batch"):
        QatConvBn2d.from_float(conv, nn.BatchNorm2d(5), FakeQuant(W4))
    with pytest.raises(ShapeError, match="channels"):
        fold_batch_norm(conv, lived(nn.BatchNorm2d(6)))
    with pytest.raises(ModelError, match="behind"):
        fold_batch_norm(nn.ReLU(), lived(nn.BatchNorm2d(6)))
    ruined = lived(nn.BatchNorm2d(5))
    ruined.running_var[0] = float("nan")
    with pytest.raises(NonFiniteError, match="variance"):
        fold_batch_norm(conv, ruined)
    with pytest.raises(SchemeError, match="convolution"):
        QatConvBn2d.from_float(
            conv, lived(nn.BatchNorm2d(5)), FakeQuant(QuantScheme(4, True, "group", 3))
        )
