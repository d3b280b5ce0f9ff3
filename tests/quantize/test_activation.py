"""Static and dynamic activation quantizers, and the integer product behind them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import CalibrationError, NonFiniteError, SchemeError, ShapeError
from labkit.core.observers import PercentileObserver
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import rtn
from labkit.quantize.activation import Dynamic, Static, calibrated, levels_used
from labkit.quantize.int8_matmul import accumulate, linear

TENSOR, TOKEN = (QuantScheme(8, granularity=g) for g in ("tensor", "token"))
W8 = QuantScheme(8)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(2, 8), st.booleans(), st.integers(0, 10**6)
)
def test_dynamic_error_is_at_most_half_a_step(tokens, features, bits, symmetric, seed):
    x = randn(tokens, features, seed=seed) * 10
    for granularity in ("tensor", "token"):
        quantized = Dynamic(QuantScheme(bits, symmetric, granularity))(x)
        assert quantized.codes.shape == x.shape
        half = 0.5 * quantized.scale * (1 + 1e-4)
        # An asymmetric zero-point is rounded: an end of the range may move by half a step.
        half = half if symmetric else 2 * half
        assert bool(((quantized.dequantize() - x).abs() <= half).all())


def test_a_full_range_scheme_gets_the_full_range_scale():
    x, full = randn(4, 8), QuantScheme(4, granularity="tensor", narrow_range=False)
    expected = x.abs().max() / 7.5
    for quantizer in (Dynamic(full), calibrated([x], full)):
        assert torch.allclose(quantizer(x).scale, expected.reshape(1, 1))


def test_token_scales_do_not_hear_other_tokens():
    x = randn(3, 2, 16)
    louder = x.clone()
    louder[0, 0] *= 100
    a, b = Dynamic(TOKEN)(x), Dynamic(TOKEN)(louder)
    assert torch.equal(a.codes[1:], b.codes[1:]) and torch.equal(a.scale[1:], b.scale[1:])
    assert not torch.equal(Dynamic(TENSOR)(x).codes[1:], Dynamic(TENSOR)(louder).codes[1:])


def test_static_is_frozen_and_clips_what_calibration_never_saw():
    static = calibrated([torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.5, -4.0]])], TENSOR)
    assert float(static.scale) == pytest.approx(4 / 127)
    seen = static(torch.tensor([[100.0, -4.0, 1.0]]))
    assert seen.codes.tolist() == [[127, -127, 32]]
    assert seen.dequantize()[0, 0] == pytest.approx(4.0)


def test_static_takes_any_observer_and_any_number_of_axes():
    x = randn(200, 8)
    x[0, 0] = 1000.0
    narrow = calibrated([x], TENSOR, PercentileObserver(99.0))
    assert float(narrow.scale) < 0.1 * float(calibrated([x], TENSOR).scale)
    assert narrow(x.reshape(20, 10, 8)).codes.shape == (20, 10, 8)


def test_all_zeros_come_back_as_zeros():
    for quantizer in (Dynamic(TENSOR), Dynamic(TOKEN), calibrated([torch.zeros(2, 3)], TENSOR)):
        assert torch.equal(quantizer(torch.zeros(2, 3)).dequantize(), torch.zeros(2, 3))


def test_bad_input_is_refused():
    with pytest.raises(CalibrationError, match="no data"):
        calibrated([], TENSOR)
    with pytest.raises(SchemeError, match="channel"):
        Dynamic(QuantScheme(8, granularity="channel"))
    with pytest.raises(SchemeError, match="token"):
        Static(TOKEN, torch.ones(1), torch.zeros(1, dtype=torch.int32))
    for bad in (float("nan"), float("inf")):
        x = torch.tensor([[1.0, bad]])
        for quantizer in (Dynamic(TENSOR), Dynamic(TOKEN), calibrated([torch.ones(1, 2)], TENSOR)):
            with pytest.raises(NonFiniteError, match=r"\(0, 1\)"):
                quantizer(x)
        with pytest.raises(NonFiniteError):
            calibrated([x], TENSOR)
    with pytest.raises(ShapeError):
        Dynamic(TENSOR)(torch.ones(0, 4))


@pytest.mark.parametrize("capability", ["AVX512", "DEFAULT"])
def test_accumulation_is_exact_on_either_path(monkeypatch, capability):
    if capability == "AVX512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    generator = torch.Generator().manual_seed(0)
    for m, k, n in [(1, 1, 1), (6, 1, 5), (1, 9, 5), (6, 9, 1), (5, 33, 7), (4, 4096, 3)]:
        a = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
        b = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
        assert torch.equal(accumulate(a, b), (a.long() @ b.long().T).int())
    extreme = torch.full((2, 100_000), -128, dtype=torch.int8)
    assert accumulate(extreme, extreme)[0, 0] == 128 * 128 * 100_000


@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integer_product_is_the_product_of_the_dequantized(granularity, symmetric):
    x = randn(2, 5, 24) + 0.5
    quantized = Dynamic(QuantScheme(8, symmetric, granularity))(x)
    bias = randn(6, seed=3)
    for weight_granularity in ("tensor", "channel"):
        scheme = QuantScheme(8, granularity=weight_granularity)
        weight = rtn.quantize(randn(6, 24, seed=1), scheme, scale_dtype=torch.float32)
        expected = quantized.dequantize().double() @ weight.dequantize().double().T + bias
        torch.testing.assert_close(
            linear(quantized, weight, bias).double(), expected, rtol=1e-5, atol=1e-5
        )


def test_scales_that_cannot_leave_the_sum_are_refused():
    x, weight = Dynamic(TOKEN)(randn(2, 8)), rtn.quantize(randn(3, 8), W8)
    grouped = rtn.quantize(randn(3, 8), QuantScheme(8, granularity="group", group_size=4))
    with pytest.raises(SchemeError, match="group"):
        linear(x, grouped)
    with pytest.raises(SchemeError, match="asym"):
        linear(x, rtn.quantize(randn(3, 8), QuantScheme(8, symmetric=False)))
    channels = QuantizedTensor(x.codes, torch.ones(2, 1), None, W8)
    with pytest.raises(SchemeError, match="activations"):
        linear(channels, weight)
    with pytest.raises(ShapeError, match="same k"):
        linear(Dynamic(TOKEN)(randn(2, 9)), weight)


def test_a_loud_channel_leaves_the_others_few_levels():
    x = randn(400, 4)
    x[:, 2] *= 100
    used = levels_used(Dynamic(TENSOR)(x))
    assert int(used[2]) > 100 and int(used[[0, 1, 3]].max()) < 10
    assert torch.equal(used, torch.tensor([len(c.unique()) for c in Dynamic(TENSOR)(x).codes.T]))
