"""Folding changes the numbers and not the function; it changes all of them or none."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from labkit.core.errors import ModelError, NonFiniteError, SchemeError, ShapeError
from labkit.models.folding import fold

WIDTH = 12


def scales(seed=0, width=WIDTH):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)).exp()


def filled(module, seed=0):
    """The module with random parameters, away from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def linear(inputs, outputs, bias=True, seed=1):
    return filled(nn.Linear(inputs, outputs, bias=bias), seed)


def conv1d(inputs, outputs, seed=1):
    return filled(Conv1D(outputs, inputs), seed)


SOURCES = {
    "LayerNorm with bias": (lambda: filled(nn.LayerNorm(WIDTH)), 0.0),
    "LlamaRMSNorm": (lambda: filled(LlamaRMSNorm(WIDTH)), 0.0),
    "GemmaRMSNorm": (lambda: filled(GemmaRMSNorm(WIDTH)), 1.0),
    "Linear with bias": (lambda: linear(WIDTH, WIDTH, seed=3), 0.0),
    "Linear without": (lambda: linear(WIDTH, WIDTH, bias=False, seed=3), 0.0),
    "Conv1D": (lambda: conv1d(WIDTH, WIDTH, seed=3), 0.0),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("reader", [linear, conv1d])
def test_the_function_stays_the_same(name, reader):
    make, offset = SOURCES[name]
    source, readers = make(), [reader(WIDTH, 5), reader(WIDTH, 7, seed=2)]
    x = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(4))
    before, outputs = source(x), [r(source(x)) for r in readers]
    fold(source, readers, scales(), norm_offset=offset)
    torch.testing.assert_close(source(x) * scales(), before, rtol=1e-4, atol=1e-4)
    for r, output in zip(readers, outputs, strict=True):
        torch.testing.assert_close(r(source(x)), output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOURCES)
def test_the_inverse_undoes_it(name):
    make, offset = SOURCES[name]
    source, reader = make(), linear(WIDTH, 5)
    before = copy.deepcopy([*source.state_dict().values(), *reader.state_dict().values()])
    fold(source, [reader], scales(), norm_offset=offset)
    assert not torch.equal(reader.weight, before[-2])
    fold(source, [reader], 1 / scales(), norm_offset=offset)
    after = [*source.state_dict().values(), *reader.state_dict().values()]
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gemma_needs_its_offset():
    source, reader = filled(GemmaRMSNorm(WIDTH)), linear(WIDTH, 5)
    x = torch.randn(9, WIDTH)
    before = reader(source(x))
    fold(source, [reader], scales(), norm_offset=0.0)
    assert not torch.allclose(reader(source(x)), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("reader", [linear, conv1d])
def test_rows_of_a_fused_source(reader):
    fused, after = reader(6, 3 * WIDTH, seed=5), linear(WIDTH, 5)
    x = torch.randn(9, 6)
    whole, output = fused(x), after(fused(x)[:, -WIDTH:])
    fold(fused, [after], scales(), rows=(2 * WIDTH, 3 * WIDTH))
    torch.testing.assert_close(fused(x)[:, :-WIDTH], whole[:, :-WIDTH], rtol=0, atol=0)
    torch.testing.assert_close(after(fused(x)[:, -WIDTH:]), output, rtol=1e-4, atol=1e-4)


def parts(*modules):
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize(
    "wrong, error, says",
    [
        (torch.ones(WIDTH - 1), ShapeError, "11 scales for 12"),
        (torch.zeros(WIDTH), SchemeError, "positive"),
        (-torch.ones(WIDTH), SchemeError, "positive"),
        (torch.full((WIDTH,), float("nan")), NonFiniteError, "NaN"),
        (torch.ones(WIDTH, 1), SchemeError, "positive number for each channel"),
    ],
)
def test_wrong_scales_change_nothing(wrong, error, says):
    source, reader = filled(nn.LayerNorm(WIDTH)), linear(WIDTH, 5)
    before = parts(source, reader)
    with pytest.raises(error, match=says):
        fold(source, [reader], wrong)
    assert all(map(torch.equal, parts(source, reader), before))


def test_grouped_query_attention_does_not_match():
    value, output = linear(WIDTH, WIDTH // 2), linear(WIDTH, WIDTH)
    with pytest.raises(ShapeError, match="grouped-query"):
        fold(value, [output], scales())


def test_overflow_of_float16_changes_nothing():
    source, reader = filled(LlamaRMSNorm(WIDTH)).half(), linear(WIDTH, 5).half()
    before = parts(source, reader)
    with pytest.raises(SchemeError, match=r"float16 ends at 6\.55e\+04.*float32"):
        fold(source, [reader], torch.full((WIDTH,), 1e6))
    with pytest.raises(SchemeError, match="float16 ends"):
        fold(source, [reader], torch.full((WIDTH,), 1e-7))
    assert all(map(torch.equal, parts(source, reader), before))


def test_half_precision_is_folded_in_float32():
    source, reader = filled(LlamaRMSNorm(WIDTH)).half(), linear(WIDTH, 5).half()
    expected = (source.weight.float() / scales()).half(), (reader.weight.float() * scales()).half()
    fold(source, [reader], scales())
    assert torch.equal(source.weight, expected[0]) and torch.equal(reader.weight, expected[1])


def test_a_norm_without_weight_is_refused():
    with pytest.raises(ModelError, match="no weight"):
        fold(nn.LayerNorm(WIDTH, elementwise_affine=False), [linear(WIDTH, 5)], scales())
