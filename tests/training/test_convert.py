"""Integers from a trained model: the same logits, and files that hold the same model."""

import pytest
import torch
from small_nets import SmallNet, images, token_batch
from tiny_models import tiny, tokens
from torch import nn

from labkit import formats
from labkit.core.errors import CalibrationError, FormatError, ModelError
from labkit.core.scheme import QuantScheme
from labkit.formats import compressed_tensors, gptq
from labkit.models.quantized import model_from
from labkit.nn.quantized_linear import QuantizedLinear
from labkit.training.convert import convert, dequantized
from labkit.training.fake_quant import FakeQuant
from labkit.training.integer_layers import IntegerConv2d, IntegerEmbedding, IntegerLinear
from labkit.training.layers import QatConv2d, QatLinear
from labkit.training.pact import LearnedClip
from labkit.training.prepare import QatConfig, observe, prepare
from labkit.training.trainer import TrainSettings, train

W4, W8 = QuantScheme(4, narrow_range=False), QuantScheme(8, narrow_range=False)
W3_GROUP = QuantScheme(3, False, "group", 32)
TOKEN8 = QuantScheme(8, True, "token", narrow_range=False)
STATIC8, STATIC8_SYM = QuantScheme(8, False, "tensor"), QuantScheme(8, True, "tensor", None, False)


def trained(config: QatConfig, family: str = "llama_gqa_tied") -> nn.Module:
    model = prepare(tiny(family), config, tell=lambda line: None)
    train(model, token_batch, TrainSettings(steps=3, warmup=1), teacher=tiny(family))
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(3, 12)).logits


@pytest.mark.parametrize("scheme", [W4, W3_GROUP, QuantScheme(2, True, "tensor")], ids=str)
@pytest.mark.parametrize("scales", ["learned", "minmax"])
def test_weights_alone_give_the_same_bits(scheme, scales):
    model = trained(QatConfig(scheme, scales=scales, embedding=W8))
    result = convert(model)
    assert torch.equal(logits(result.model), logits(model))
    assert torch.equal(logits(dequantized(model)), logits(model))
    assert not any(isinstance(m, nn.Linear | nn.Embedding) for m in result.model.modules())
    assert isinstance(result.model.model.embed_tokens, IntegerEmbedding)
    assert len(result.layers) == 16 and all(
        layer.codes.dtype == scheme.code_dtype for n, layer in result.layers.items() if "mlp" in n
    )


def rounding_bound(layer: QatLinear, x: torch.Tensor) -> torch.Tensor:
    """How far a float32 sum of n products may lie from the exact one, for each output.

    n · 2^-24 · Σ |x̂ ŵ| (Higham 2002, section 3.1, first order), and as much again for scales, bias
    and the conversion of the sum: n + 4 roundings on either side.
    """
    rounded, weight = layer.input_quant(x), layer.weight_quant(layer.weight)
    largest = rounded.abs() @ weight.abs().T
    largest = largest + (0 if layer.bias is None else layer.bias.abs())
    return 2 * (x.shape[-1] + 4) * 2**-24 * largest


@pytest.mark.parametrize("inputs", [TOKEN8, STATIC8, STATIC8_SYM], ids=str)
@pytest.mark.parametrize("weights", [W4, W8], ids=str)
def test_each_integer_layer_is_within_float_rounding_of_the_trained_one(weights, inputs):
    model = trained(QatConfig(weights, inputs), "qwen2")
    result, generator = convert(model), torch.Generator().manual_seed(0)
    for name in result.layers:
        layer, integers = model.get_submodule(name), result.model.get_submodule(name)
        assert isinstance(integers, QuantizedLinear)
        x = torch.randn(7, layer.in_features, generator=generator)
        with torch.no_grad():
            assert bool(((integers(x) - layer(x)).abs() <= rounding_bound(layer, x)).all())


@pytest.mark.parametrize("inputs", [TOKEN8, STATIC8], ids=str)
def test_logits_differ_by_what_flipped_codes_may_do(inputs):
    """A sum that is off by one part in 2^24 can move an input of the next layer over a tie: one
    code in a row, 1/127 of its largest value at most. A few of those among thousands of codes stay
    below a hundredth of the logits; without any, the difference is float noise."""
    model = trained(QatConfig(W4, inputs))
    exported, expected = logits(convert(model).model), logits(model)
    assert (exported - expected).norm() < 0.01 * expected.norm()
    assert torch.equal(exported.argmax(-1), expected.argmax(-1))


def test_a_learned_clip_is_exported_too():
    clip = LearnedClip(QuantScheme(4, False, "tensor"), 2.0)
    layer = QatLinear.from_float(nn.Linear(16, 4), FakeQuant(W4), clip).eval()
    x = torch.randn(5, 16)
    with torch.no_grad():
        difference = convert(nn.Sequential(layer)).model(x) - layer(x)
        assert bool((difference.abs() <= rounding_bound(layer, x)).all())


def test_groups_and_asymmetric_weights_keep_a_float_sum():
    model = trained(QatConfig(W3_GROUP, TOKEN8))
    result = convert(model)
    assert isinstance(result.model.model.layers[0].mlp.up_proj, IntegerLinear)
    assert torch.equal(logits(result.model), logits(model))


def test_a_rounded_cache_stays_rounded():
    model = trained(QatConfig(W4, cache=QuantScheme(4, True, "token")))
    result = convert(model)
    assert torch.equal(logits(result.model), logits(model))
    assert not torch.equal(logits(dequantized(model)), logits(model))
    unseen = prepare(
        tiny("llama"), QatConfig(W4, cache=QuantScheme(8, True, "tensor")), tell=lambda line: None
    )
    with pytest.raises(CalibrationError, match="seen nothing"):
        convert(unseen)


@pytest.mark.parametrize("cache", [QuantScheme(8, True, "token"), STATIC8], ids=str)
def test_training_learns_through_a_rounded_cache_and_decoding_holds_it(cache):
    """One token at a time, from a cache of rounded keys and values, gives what all at once do."""
    model = prepare(tiny("llama_gqa_tied"), QatConfig(W4, cache=cache), tell=lambda line: None)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "v_proj.w" in n}
    train(model, token_batch, TrainSettings(steps=3, warmup=1), teacher=tiny("llama_gqa_tied"))
    moved = dict(model.named_parameters())
    assert all(not torch.equal(moved[name], value) for name, value in before.items())
    exported, ids = convert(model).model, tokens(1, 8)
    with torch.no_grad():
        whole, past, steps = exported(ids).logits, None, []
        for index in range(ids.shape[1]):
            out = exported(ids[:, index : index + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)
    assert torch.equal(whole, model(ids).logits)


@pytest.mark.parametrize("scheme", [W4, QuantScheme(2, False, "group", 32), W3_GROUP], ids=str)
def test_gptq_files_hold_the_trained_model(scheme, tmp_path):
    model = trained(QatConfig(scheme))
    # v1 has no room for a zero-point of 0.
    gptq.save(convert(model).checkpoint(), tmp_path / "out", version="gptq_v2")
    read = model_from(formats.load(tmp_path / "out"))
    assert torch.equal(logits(read), logits(model))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("inputs", "activations"),
    [(TOKEN8, "scales"), (STATIC8_SYM, "scales"), (STATIC8_SYM, "pact")],
    ids=str,
)
def test_compressed_tensors_hold_rounded_inputs_too(bits, inputs, activations, tmp_path):
    scheme = QuantScheme(bits, narrow_range=False)
    model = trained(QatConfig(scheme, inputs, activations=activations))
    compressed_tensors.save(convert(model).checkpoint(), tmp_path / "out")
    read = model_from(formats.load(tmp_path / "out"))
    assert torch.equal(logits(read), logits(model))


def test_a_rounded_table_is_stored_as_its_floats(tmp_path):
    model = trained(QatConfig(W4, embedding=W8))
    gptq.save(convert(model).checkpoint(), tmp_path / "out")
    read = model_from(formats.load(tmp_path / "out"))
    assert torch.equal(logits(read), logits(model))


def test_gpt2s_turned_layers_are_exported_as_they_are_stored(tmp_path):
    model = trained(QatConfig(W4), "gpt2")
    gptq.save(convert(model).checkpoint(), tmp_path / "out")
    read = model_from(formats.load(tmp_path / "out"))
    assert torch.allclose(logits(read), logits(model), atol=1e-4)


@pytest.mark.parametrize("inputs", [None, STATIC8, STATIC8_SYM], ids=str)
@pytest.mark.parametrize("scales", ["learned", "minmax"])
def test_a_convolution_net_becomes_integers(inputs, scales):
    config = QatConfig(W8, inputs, scales=scales)
    model = prepare(SmallNet(), config, tell=lambda line: None)
    observe(model, [images(seed=seed) for seed in range(3)])
    result = convert(model)
    assert isinstance(result.model.conv1, IntegerConv2d)
    with torch.no_grad():
        ours, expected = result.model(images(seed=9)), model.eval()(images(seed=9))
    # As above: exact sums against rounded ones, and here and there a code that flips.
    assert (ours - expected).norm() < (1e-5 if inputs is None else 0.01) * expected.norm()
    with torch.no_grad():
        float_inputs = dequantized(model)(images(seed=9))
    assert (float_inputs - expected).norm() < 0.05 * expected.norm()


def test_an_integer_convolution_pads_with_the_real_zero():
    conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
    inputs = FakeQuant(STATIC8, "moving")
    layer = QatConv2d.from_float(conv, FakeQuant(W8), inputs)
    layer.train()(torch.rand(4, 2, 5, 5) + 1)  # a range whose zero-point is an end of the grid
    integers = convert(nn.Sequential(layer)).model[0]
    x = torch.rand(2, 2, 5, 5) + 1
    assert torch.allclose(integers(x), layer.eval()(x), atol=1e-5)


def test_failures_say_what_to_do():
    with pytest.raises(ModelError, match="prepare"):
        convert(tiny("llama"))
    untrained = prepare(
        tiny("llama"), QatConfig(W8, STATIC8, scales="minmax"), tell=lambda line: None
    )
    with pytest.raises(CalibrationError, match="seen nothing") as caught:
        convert(untrained)
    assert "layers.0" in caught.value.__notes__[0]
    dead = prepare(SmallNet(), QatConfig(W8, STATIC8, scales="minmax"), tell=lambda line: None)
    observe(dead, [torch.zeros(4, 3, 8, 8)])
    with pytest.raises(CalibrationError, match="one value"):
        convert(dead)
    for config in (
        QatConfig(W8, QuantScheme(8, True, "token")),
        QatConfig(W8, STATIC8),
        QatConfig(W8, cache=TOKEN8),
    ):
        with pytest.raises(FormatError, match="no format"):
            convert(trained(config)).checkpoint()
