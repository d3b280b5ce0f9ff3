"""Post-training quantization of a convolution net, against what its parts should give."""

from __future__ import annotations

import copy

import pytest
import torch
from image_nets import calibrated, random_pixels, small_net
from torch import Tensor, nn
from torch.nn import functional

from labkit.core.errors import CalibrationError, ModelError, NonFiniteError, SchemeError
from labkit.core.observers import OBSERVERS
from labkit.core.scheme import QuantScheme
from labkit.models.resnet import ResNet
from labkit.training.convert import convert
from labkit.training.fake_quant import FakeQuant
from labkit.training.integer_layers import IntegerConv2d
from labkit.training.static import (
    bias_step,
    calibrate,
    prepare_static,
    require_ranges,
    stored_places,
    with_integer_biases,
    without_rounding,
)

W8, W4 = QuantScheme(8, True, "channel"), QuantScheme(4, True, "channel")
W8_TENSOR, A8 = QuantScheme(8, True, "tensor"), QuantScheme(8, False, "tensor")
PIXELS, OTHERS = random_pixels(32), random_pixels(16, seed=9)


def test_the_folded_float_net_is_the_float_net():
    net = small_net()
    plain = without_rounding(prepare_static(net))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    torch.testing.assert_close(plain(OTHERS), net(OTHERS), rtol=1e-4, atol=1e-5)


def test_ranges_are_those_of_the_float_net_whatever_the_rounding():
    net = small_net()
    prepared = calibrated(net, PIXELS, QuantScheme(2, True, "tensor"), A8)
    with torch.no_grad():
        stem = torch.relu(net.norm(net.conv(PIXELS)))
        branch = net.stages[0].norm2(
            net.stages[0].conv2(torch.relu(net.stages[0].norm1(net.stages[0].conv1(stem))))
        )
    for quant, seen in (
        (prepared.stages[0].conv1.input_quant, stem),
        (prepared.stages[0].shortcut_sum, stem),
        (prepared.stages[0].branch_sum, branch),
    ):
        assert float(quant.lo) == pytest.approx(float(seen.min()), abs=1e-5)
        assert float(quant.hi) == pytest.approx(float(seen.max()), abs=1e-5)
    # One tensor, read by a layer and by a sum: one grid.
    assert prepared.stages[0].conv1.input_quant.hi == prepared.stages[0].shortcut_sum.hi


def test_the_images_have_the_range_that_is_known_unless_it_is_to_be_seen():
    dark = PIXELS * 0.5
    prepared = calibrated(small_net(), dark)
    assert (float(prepared.conv.input_quant.lo), float(prepared.conv.input_quant.hi)) == (0, 1)
    calibrate(prepared, [dark], image_range=None)
    assert float(prepared.conv.input_quant.hi) == float(dark.max()) < 1


@pytest.mark.parametrize("name", ["minmax", "percentile", "kl"])
def test_every_observer_is_given_all_batches(name):
    whole, cut = (prepare_static(small_net()) for _ in range(2))
    calibrate(whole, [PIXELS], OBSERVERS[name])
    calibrate(cut, PIXELS.split(11), OBSERVERS[name])
    for a, b in zip(stored_places(whole).values(), stored_places(cut).values(), strict=True):
        assert float(a.hi) == pytest.approx(float(b.hi), rel=2e-2)


def test_one_scale_for_each_channel_or_one_for_all():
    for scheme, count in ((W8, 4), (W8_TENSOR, 1)):
        layers = convert(calibrated(small_net(), PIXELS, scheme)).layers
        assert layers["conv"].scale.numel() == count
        assert layers["conv"].scale.dtype == torch.float32


@pytest.mark.parametrize("weights", [W8, W8_TENSOR, W4])
def test_integer_layers_give_what_fake_quantized_ones_give_up_to_the_sums_rounding(weights):
    """Integer sums are exact; a float32 sum of K products is off by at most K · 2^-23 of Σ|x w|."""
    prepared = calibrated(small_net(), PIXELS, weights, A8)
    integers, read = convert(prepared).model, {}
    layers = {n: m for n, m in integers.named_modules() if isinstance(m, IntegerConv2d)}
    for name in layers:
        prepared.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: read.update({name: (inputs[0], output)})
        )
    with torch.no_grad():
        prepared(OTHERS)
    assert len(layers) == 6
    for name, layer in layers.items():
        x, wanted = read[name]
        rounded = layer.activation(x).dequantize().abs()
        weight = layer.quantized.dequantize().abs()
        folded = prepared.get_submodule(name).folded()
        most = folded._conv_forward(rounded, weight, folded.bias.abs())
        products = weight[0].numel() + 2
        assert bool(((layer(x) - wanted).abs() <= products * 2.0**-23 * most).all()), name


def test_from_layer_to_layer_a_code_moves_by_one_at_most_and_seldom():
    prepared = calibrated(small_net(), PIXELS, W8, A8)
    found: list[dict[str, Tensor]] = []
    for model in (prepared, convert(prepared).model):
        codes: dict[str, Tensor] = {}
        for name, quant in stored_places(model).items():
            quant.register_forward_hook(
                lambda m, inputs, output, name=name, codes=codes: codes.update(
                    {name: (output / m.qparams()[0]).round()}
                )
            )
        with torch.no_grad():
            model(OTHERS)
        found.append(codes)
    moved = [(found[0][name] - found[1][name]).abs() for name in found[0]]
    assert max(float(difference.max()) for difference in moved) <= 1
    assert sum(int((d > 0).sum()) for d in moved) <= 0.01 * sum(d.numel() for d in moved)


def test_biases_become_whole_multiples_of_what_a_sum_counts_in():
    prepared = calibrated(small_net(), PIXELS)
    rounded = with_integer_biases(prepared)
    for name, layer in rounded.named_modules():
        if not hasattr(layer, "weight_quant"):
            continue
        step = bias_step(layer)
        before = prepared.get_submodule(name)
        before = before.folded() if hasattr(before, "folded") else before
        codes = layer.bias.double() / step
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)
        assert bool(((layer.bias - before.bias).abs() <= step * 0.51).all())
    assert any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())  # a copy was changed
    difference = (convert(rounded).model(OTHERS) - convert(prepared).model(OTHERS)).abs()
    assert 0 < float(difference.max()) < 0.1


def test_a_prepared_net_can_be_trained_from_its_calibrated_ranges():
    prepared = calibrated(small_net(), PIXELS, W4, A8)
    before = float(prepared.mean_stored.hi)
    prepared.train()
    functional.cross_entropy(prepared(OTHERS), torch.zeros(16, dtype=torch.int64)).backward()
    assert float(prepared.conv.weight.grad.abs().sum()) > 0
    assert 0 < abs(float(prepared.mean_stored.hi) - before) < before


# Bad input


def test_a_batch_norm_without_statistics_is_refused():
    with pytest.raises(CalibrationError, match="statistics are those of no batch") as caught:
        prepare_static(ResNet(1, 3, (4,)))
    assert caught.value.__notes__ == ["in layer conv"]


def test_a_place_that_only_ever_sees_one_value_is_named():
    net = small_net()
    with torch.no_grad():
        net.stages[1].norm1.weight.zero_()
        net.stages[1].norm1.bias.fill_(-1)  # a dead layer: relu gives zeros alone
    with pytest.raises(CalibrationError, match="the one value 0") as caught:
        calibrate(prepare_static(net), [PIXELS])
    assert caught.value.__notes__ == ["at stages.1.conv2.input_quant"]


def test_calibrating_with_nothing_is_refused():
    with pytest.raises(CalibrationError, match="no data"):
        calibrate(prepare_static(small_net()), [])


def test_calibrating_with_broken_images_is_refused():
    pixels = PIXELS.clone()
    pixels[3, 0, 2, 2] = float("nan")
    with pytest.raises(NonFiniteError):
        calibrate(prepare_static(small_net()), [pixels])


def test_a_net_that_was_not_prepared_is_refused():
    with pytest.raises(ModelError, match="no place has a static range"):
        calibrate(small_net(), [PIXELS])


def test_inputs_by_token_are_refused():
    with pytest.raises(SchemeError, match="convolution"):
        prepare_static(small_net(), W8, QuantScheme(8, True, "token"))


def test_an_untrained_observer_is_not_exported():
    prepared = prepare_static(small_net())
    for refuse in (require_ranges, convert, with_integer_biases):
        with pytest.raises(CalibrationError, match="has seen nothing"):
            refuse(prepared)
    half = calibrated(small_net(), PIXELS)
    half.mean_stored = FakeQuant(A8, "moving")
    with pytest.raises(CalibrationError, match="has seen nothing") as caught:
        require_ranges(copy.deepcopy(half))
    assert caught.value.__notes__ == ["at mean_stored"]
