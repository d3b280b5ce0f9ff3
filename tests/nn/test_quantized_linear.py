"""The layers that hold integers: their arithmetic, their dtype, their counters."""

import pytest
import torch

from labkit.core.errors import NonFiniteError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.nn.quantized_linear import LLMInt8Linear, QuantizedLinear
from labkit.quantize import llm_int8, rtn
from labkit.quantize.activation import Dynamic

TOKEN = Dynamic(QuantScheme(8, granularity="token"))


def parts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 32, generator=generator)
    x[..., 3] = 40.0
    return x, torch.randn(8, 32, generator=generator), torch.randn(8, generator=generator)


def test_it_is_the_product_of_the_rounded_factors():
    x, weight, bias = parts()
    quantized = rtn.quantize(weight, QuantScheme(8), scale_dtype=torch.float32)
    y = QuantizedLinear(quantized, TOKEN, bias)(x)
    expected = TOKEN(x).dequantize() @ quantized.dequantize().T + bias
    assert y.shape == (2, 5, 8)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_dtype_of_the_input(dtype):
    x, weight, bias = parts()
    for layer in (
        QuantizedLinear(rtn.quantize(weight, QuantScheme(8)), TOKEN, bias),
        LLMInt8Linear(llm_int8.quantize(weight), bias),
    ):
        assert layer(x.to(dtype)).dtype == dtype


def test_loud_columns_are_counted_over_all_calls():
    x, weight, _ = parts()
    layer = LLMInt8Linear(llm_int8.quantize(weight), threshold=30.0)
    layer(x)
    layer(x / 10)
    assert (layer.outliers, layer.columns) == (1, 64)
    torch.testing.assert_close(layer(x), x @ layer.quantized.dequantize().T, rtol=0, atol=0.3)


def test_they_say_what_they_hold():
    _, weight, _ = parts()
    layer = QuantizedLinear(rtn.quantize(weight, QuantScheme(8)), TOKEN)
    assert "int8 sym channel" in repr(layer) and "token" in repr(layer)
    assert "threshold=6.0" in repr(LLMInt8Linear(llm_int8.quantize(weight)))


def test_bad_input_is_refused():
    x, weight, _ = parts()
    grouped = rtn.quantize(weight, QuantScheme(8, granularity="group", group_size=16))
    with pytest.raises(SchemeError, match="group"):
        QuantizedLinear(grouped, TOKEN)(x)
    x[0, 0, 0] = float("nan")
    for layer in (
        QuantizedLinear(rtn.quantize(weight, QuantScheme(8)), TOKEN),
        LLMInt8Linear(llm_int8.quantize(weight)),
    ):
        with pytest.raises(NonFiniteError):
            layer(x)
