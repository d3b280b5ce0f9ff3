"""QuantLinear: the product with what its packed weight dequantizes to, for every form."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from packed_cases import CASES, COLUMNS, ROWS, case
from torch import nn

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.formats.inputs import InputQuantization
from labkit.kernels import quantize_tokens
from labkit.nn.quant_linear import QuantLinear
from labkit.quantize import rtn

EVERY = pytest.mark.parametrize("name", list(CASES))


def close(y, x, weight, bias=None):
    """Float32 sums in another order, then the rounding of y's dtype."""
    exact = x.double() @ weight.double().T
    magnitude = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    bound = 64 * 2.0**-23 * magnitude + 2 * torch.finfo(y.dtype).eps * exact.abs()
    if y.dtype != torch.float32:
        bound = bound + torch.finfo(y.dtype).eps * magnitude / 8
    assert ((y.double() - exact).abs() <= bound).all()


@EVERY
def test_dequantize_gives_what_the_format_gives(name):
    weight, wanted = case(name)
    layer = QuantLinear(weight)
    assert torch.equal(layer.dequantize(), wanted)
    assert (layer.in_features, layer.out_features) == (COLUMNS, ROWS)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(name, dtype):
    weight, wanted = case(name)
    bias = torch.randn(ROWS)
    layer = QuantLinear.from_quantized(weight, bias)
    for shape in ((COLUMNS,), (1, COLUMNS), (2, 3, COLUMNS), (40, COLUMNS), (2, 0, COLUMNS)):
        x = torch.randn(*shape).to(dtype)
        y = layer(x)
        assert y.shape == (*shape[:-1], ROWS) and y.dtype == dtype
        close(y, x, wanted, bias)


@EVERY
def test_it_holds_packed_bytes_alone(name):
    layer = QuantLinear(case(name)[0], torch.randn(ROWS))
    assert not list(layer.parameters())
    held = sum(buffer.nbytes for buffer in layer.buffers()) - layer.bias.nbytes
    assert layer.weight_nbytes == held
    bits = layer.weight_nbytes * 8 / (ROWS * COLUMNS)
    widths = {"int2": 2.5, "int3": 3.6, "int4": 5.3, "nf4": 5, "fp4": 5, "Q4": 5}
    widths |= {"int8 sym": 9, "int8 asym": 9}
    limit = next((most for word, most in widths.items() if name.startswith(word)), 16)
    assert bits <= limit
    form = layer.weight.form
    assert form.label in repr(layer) and f"{ROWS} x {COLUMNS}" in repr(layer)


@EVERY
def test_state_copy_cast_and_move(name):
    weight, wanted = case(name)
    layer = QuantLinear(weight, torch.randn(ROWS))
    other = QuantLinear(case(name, seed=1)[0], torch.zeros(ROWS))
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(other.dequantize(), wanted)
    x = torch.randn(3, COLUMNS)
    assert torch.equal(other(x), layer(x))
    copied = copy.deepcopy(layer)
    own = {part.data_ptr() for part in layer.weight.parts()}
    assert own.isdisjoint(part.data_ptr() for part in copied.weight.parts())
    copied.to(torch.bfloat16).double().half()
    assert copied.bias.dtype == copied.weight.dtype == torch.float16
    assert torch.equal(copied.dequantize(), wanted)
    assert copied.to("meta").weight.device.type == "meta"
    with pytest.raises(SchemeError, match="cannot become"):
        layer.type(torch.float64)


def test_a_state_dict_of_another_type_is_refused():
    layer, other = QuantLinear(case("nf4")[0]), QuantLinear(case("fp4 nested")[0])
    state = layer.state_dict() | {"weight._extra_state": other.state_dict()["weight._extra_state"]}
    with pytest.raises(SchemeError, match="another file"):
        layer.load_state_dict(state)


def test_two_modules_may_share_a_weight():
    first = QuantLinear(case("Q4_0")[0])
    both = nn.ModuleList([first, QuantLinear(first.weight)]).to(torch.bfloat16)
    assert both[0].weight is both[1].weight
    assert len({buffer.data_ptr() for buffer in both.buffers() if buffer.nbytes}) == 1


@pytest.mark.parametrize("name", ["int4 asym group 32", "int8 panels"])
def test_eight_bit_activations(name):
    weight, wanted = case(name)
    layer = QuantLinear(weight, activation_bits=8)
    x = torch.randn(5, COLUMNS)
    codes, scale = quantize_tokens(x)
    close(layer(x), codes * scale, wanted)
    assert "8-bit inputs" in repr(layer)


@pytest.mark.parametrize("name", ["int4 asym group 32", "int4 act-order, bfloat16 scales"])
def test_off_the_cpu_rows_stand_one_after_the_other(name):
    weight, wanted = case(name)
    layer, x = QuantLinear(weight), torch.randn(5, COLUMNS)
    assert layer.weight.form.kind == "int4 panels"
    rows = layer.weight.form.elsewhere()
    assert rows.kind == "int4" and torch.equal(rows.dequantize(), wanted)
    close(QuantLinear(rows)(x), x, wanted)
    state = set(layer.state_dict())
    moved = layer.to("meta")
    assert set(moved.state_dict()) == state and moved.weight.device.type == "meta"
    assert json.loads(moved.weight.recipe)["kind"] == "int4"


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K panels"])
def test_off_the_cpu_blocks_are_those_of_the_file(name):
    weight, wanted = case(name)
    layer, x = QuantLinear(weight), torch.randn(5, COLUMNS)
    assert layer.weight.form.kind == "gguf panels"
    close(layer(x), x, wanted)
    blocks = layer.weight.form.elsewhere()
    assert blocks.kind == "gguf" and torch.equal(blocks.dequantize(), wanted)
    assert json.loads(layer.to("meta").weight.recipe)["kind"] == "gguf"


def test_eight_bit_activations_with_gguf_blocks():
    weight, wanted = case("Q4_K")
    layer, x = QuantLinear(weight, activation_bits=8), torch.randn(5, COLUMNS)
    assert layer.weight.form.kind == "gguf panels"
    assert torch.equal(layer.dequantize(), wanted)
    codes, scale = quantize_tokens(x.reshape(-1, 32))  # a scale for each run of 32
    rounded = (codes * scale).reshape(x.shape)
    torch.testing.assert_close(layer(x), rounded @ wanted.T, rtol=1e-4, atol=1e-4)


def test_symmetric_int8_is_laid_out_for_integer_inputs():
    quantized, wanted = case("int8 sym channel")
    layer = QuantLinear(quantized, activation_bits=8)
    assert layer.weight.form.kind == "int8"
    assert torch.equal(layer.dequantize(), wanted)
    assert QuantLinear(quantized).weight.form.kind == "bits"


@pytest.mark.parametrize(
    ("kind", "granularity", "scale", "name"),
    [
        ("int", "token", None, "int8 sym channel"),
        ("int", "tensor", None, "int8 sym channel"),
        ("int", "tensor", torch.tensor([0.03]), "int8 sym channel"),
        ("int", "token", None, "int8 asym group 64"),
        ("float", "token", None, "fp8 channel"),
        ("float", "tensor", torch.tensor([0.004]), "fp8 tensor"),
    ],
)
def test_inputs_are_rounded_as_the_checkpoint_says(kind, granularity, scale, name):
    weight, wanted = case(name)
    inputs = InputQuantization(kind, granularity, scale)
    layer = QuantLinear(weight, inputs=inputs)
    x = torch.randn(2, 3, COLUMNS)
    close(layer(x), inputs.apply(x), wanted)
    if scale is not None:
        assert torch.equal(layer.half().input_scale, scale)


def test_codes_of_inputs_are_what_apply_rounds_to():
    x = torch.randn(4, 7, 33)
    for inputs in (
        InputQuantization("int"),
        InputQuantization("int", "tensor"),
        InputQuantization("int", "tensor", torch.tensor(0.01)),
    ):
        codes, scale = inputs.codes(x)
        assert codes.dtype == torch.int8 and scale.shape == (4, 7, 1)
        assert torch.equal(codes * scale, inputs.apply(x))
    with pytest.raises(SchemeError, match="integer codes"):
        InputQuantization("float").codes(x)


@pytest.mark.parametrize("name", ["int4 sym group 128", "nf4", "Q4_K", "bfloat16", "int8 panels"])
def test_a_gradient_flows_to_the_input(name):
    weight, wanted = case(name)
    x = torch.randn(3, COLUMNS, requires_grad=True)
    upstream = torch.randn(3, ROWS)
    (QuantLinear(weight)(x) * upstream).sum().backward()
    torch.testing.assert_close(x.grad, upstream @ wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["int4 act-order, bfloat16 scales", "int8 panels", "fp4 nested"])
def test_compiled_without_a_break(name):
    torch.compiler.reset()
    layer = QuantLinear(case(name)[0], torch.randn(ROWS))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, COLUMNS)
    assert torch.equal(compiled(x), layer(x))


def test_rounded_inputs_are_compiled_without_a_break():
    torch.compiler.reset()
    weight, inputs = case("int8 sym channel")[0], InputQuantization("int")
    layer = QuantLinear(weight, inputs=inputs)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, COLUMNS)
    assert torch.equal(compiled(x), layer(x))


def test_refusals():
    weight = case("nf4")[0]
    with pytest.raises(SchemeError, match="no kernel for 8-bit activations"):
        QuantLinear(weight, activation_bits=8)
    with pytest.raises(SchemeError, match="activation_bits is 4"):
        QuantLinear(weight, activation_bits=4)
    with pytest.raises(ShapeError, match="bias"):
        QuantLinear(weight, torch.zeros(3))
    with pytest.raises(SchemeError, match="no weight that labkit packs"):
        QuantLinear([1, 2])
    with pytest.raises(ShapeError, match="weight takes"):
        QuantLinear(weight)(torch.zeros(2, COLUMNS + 1))
    for name in CASES:
        with pytest.raises((ShapeError, SchemeError)):
            QuantLinear(case(name)[0])(torch.zeros(2, COLUMNS, dtype=torch.float64))
    token = rtn.quantize(torch.randn(8, 32), QuantScheme(4, granularity="token"))
    with pytest.raises(SchemeError, match="no weight"):
        QuantLinear(token)
    with pytest.raises(ShapeError, match="blocks"):
        QuantLinear((torch.zeros(4, 17, dtype=torch.uint8), "Q4_0"))
    with pytest.raises(SchemeError, match="no block type"):
        QuantLinear((torch.zeros(4, 18, dtype=torch.uint8), "Q9_9"))


@pytest.mark.gpu
@EVERY
def test_on_a_gpu(name):
    weight, wanted = case(name)
    layer = QuantLinear(weight, torch.randn(ROWS)).cuda()
    x = torch.randn(3, COLUMNS).cuda()
    close(layer(x).cpu(), x.cpu(), wanted, layer.bias.cpu())
    assert torch.equal(layer.dequantize().cpu(), wanted)
