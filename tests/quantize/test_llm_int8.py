"""LLM.int8(): our decomposition, its bounds, and bitsandbytes' Linear8bitLt on the same numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.quantize import llm_int8


def layer(tokens=12, columns=64, out=32, loud=(3, 17), factor=40.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Values that float16 holds exactly, because bitsandbytes casts to it first.
    x = torch.randn(tokens, columns, generator=generator).clamp(-5, 5)
    x[:, list(loud)] *= factor
    weight = torch.randn(out, columns, generator=generator) / math.sqrt(columns)
    bias = torch.randn(out, generator=generator)
    return x.half().float(), weight.half().float(), bias.half().float()


def test_outlier_columns_are_those_that_any_token_makes_loud():
    x = torch.zeros(2, 3, 5)
    x[0, 1, 4], x[1, 2, 0], x[0, 0, 2] = -6.0, 7.0, 5.99
    assert llm_int8.outlier_columns(x).tolist() == [0, 4]
    assert llm_int8.outlier_columns(x, math.inf).tolist() == []


def test_outlier_features_are_loud_in_many_layers_and_tokens():
    hidden = torch.ones(8, 50, 6)
    hidden[:2, :3, 1] = -7.0  # a quarter of the layers, 6 % of the tokens: just enough
    hidden[:1, :, 2] = 50.0  # one layer alone
    hidden[:, :2, 3] = 50.0  # two tokens alone
    hidden[:, :, 4] = 6.0
    hidden[:, :, 5] = 5.99
    assert llm_int8.outlier_features(hidden).tolist() == [1, 4]
    assert llm_int8.outlier_features(hidden, 40.0, 0.1, 0.01).tolist() == [2, 3]
    for bad in (torch.ones(2, 3), torch.ones(0, 3, 2)):
        with pytest.raises(ShapeError):
            llm_int8.outlier_features(bad)
    for arguments in ((0.0,), (6.0, 0.0), (6.0, 0.25, 1.5), (math.nan,)):
        with pytest.raises(SchemeError):
            llm_int8.outlier_features(hidden, *arguments)
    hidden[0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        llm_int8.outlier_features(hidden)


@given(st.integers(0, 10**6), st.sampled_from([(), (0,), (1, 5), (0, 1, 2, 3, 4, 5, 6)]))
def test_error_is_bounded_by_the_quiet_columns_alone(seed, loud):
    x, weight, bias = layer(6, 8, 5, loud, 100.0, seed)
    quantized = llm_int8.quantize(weight)
    y = llm_int8.linear(x, quantized, bias, original=weight)
    split = set(llm_int8.outlier_columns(x).tolist())
    quiet = [c for c in range(8) if c not in split]
    if not quiet:
        return
    x_quiet, w_quiet = x[:, quiet], weight[:, quiet]
    step_x = x_quiet.abs().amax(dim=1, keepdim=True) / 127
    step_w = quantized.scale.T
    bound = step_x / 2 * w_quiet.abs().sum(dim=1) + step_w / 2 * x_quiet.abs().sum(
        dim=1, keepdim=True
    )
    bound = bound + len(quiet) * step_x * step_w / 4
    size = x.abs() @ weight.abs().T + bias.abs()
    assert bool(((y - (x @ weight.T + bias)).abs() <= bound + 1e-5 * size).all())


def test_outliers_are_worth_splitting_off():
    x, weight, bias = layer()
    quantized, target = llm_int8.quantize(weight), x @ weight.T + bias
    split = (llm_int8.linear(x, quantized, bias) - target).norm()
    naive = (llm_int8.linear(x, quantized, bias, threshold=math.inf) - target).norm()
    exact = (llm_int8.linear(x, quantized, bias, original=weight) - target).norm()
    assert exact < 0.2 * naive and exact <= split <= naive


def test_without_outliers_it_is_plain_int8():
    x, weight, _ = layer(loud=())
    quantized = llm_int8.quantize(weight)
    a = llm_int8.linear(x, quantized)
    assert torch.equal(a, llm_int8.linear(x, quantized, threshold=math.inf))
    assert a.shape == (12, 32) and a.dtype == torch.float32


def test_leading_axes_stay():
    x, weight, bias = layer()
    quantized = llm_int8.quantize(weight)
    y = llm_int8.linear(x.reshape(3, 4, 64), quantized, bias)
    assert torch.equal(y.reshape(12, 32), llm_int8.linear(x, quantized, bias))


def test_bad_input_is_refused():
    x, weight, _ = layer()
    quantized = llm_int8.quantize(weight)
    for threshold in (0.0, -1.0, math.nan):
        with pytest.raises(SchemeError, match="threshold"):
            llm_int8.linear(x, quantized, threshold=threshold)
    with pytest.raises(ShapeError, match="63 columns"):
        llm_int8.linear(x[:, 1:], quantized)
    x[1, 2] = math.inf
    with pytest.raises(NonFiniteError, match=r"\(1, 2\)"):
        llm_int8.linear(x, quantized)
    weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        llm_int8.quantize(weight)


def test_a_threshold_that_takes_all_columns_leaves_a_float_product():
    x, weight, bias = layer()
    quantized = llm_int8.quantize(weight)
    y = llm_int8.linear(x + 100, quantized, bias)
    torch.testing.assert_close(y, (x + 100) @ quantized.dequantize().T + bias)


def test_silent_rows_and_weights_give_zeros():
    x, weight, _ = layer(loud=())
    x[2] = 0
    weight[5] = 0
    y = llm_int8.linear(x, llm_int8.quantize(weight))
    assert not y[2].any() and not y[:, 5].any() and bool(torch.isfinite(y).all())


class TestBitsandbytes:
    """Linear8bitLt(has_fp16_weights=False) on a CPU, called as transformers does."""

    @staticmethod
    def theirs(weight, bias, threshold=6.0):
        bnb = pytest.importorskip("bitsandbytes")
        module = bnb.nn.Linear8bitLt(
            weight.shape[1], weight.shape[0], has_fp16_weights=False, threshold=threshold
        )
        module.load_state_dict({"weight": weight, "bias": bias})
        return module.to("cpu").eval()

    @staticmethod
    def apart(ours, theirs):
        """Largest difference over the mean size: both round the last step to float16."""
        return float((ours - theirs).abs().max() / theirs.abs().mean())

    def test_the_weight_codes_are_the_same(self):
        x, weight, bias = layer()
        module = self.theirs(weight, bias)
        module(x.half())
        ours = llm_int8.quantize(weight)
        codes = (ours.codes.int() - module.state.CB.int()).abs()
        # They multiply by 127 / max where we divide by max / 127: a tie may fall the other way.
        assert int(codes.max()) <= 1 and float((codes > 0).float().mean()) < 1e-3
        torch.testing.assert_close(ours.scale[:, 0] * 127, module.state.SCB.float())

    @pytest.mark.parametrize("loud", [(), (3,), (3, 17)])
    def test_the_output_is_the_same_within_int8_rounding(self, loud):
        x, weight, bias = layer(loud=loud)
        module = self.theirs(weight, bias)
        with torch.inference_mode():
            theirs = module(x.half()).float()
        ours = llm_int8.linear(x, llm_int8.quantize(weight), bias)
        # Theirs takes a row's scale from the loud columns' small values too: half a step of one
        # code in either, over 64 columns, and float16 at the end.
        step = x[:, [c for c in range(64) if c not in loud]].abs().amax(dim=1, keepdim=True) / 127
        bound = step * weight.abs().sum(dim=1) / 2 + theirs.abs() * 2**-10 + 1e-3
        assert bool(((ours - theirs).abs() <= bound).all())
        target = x @ weight.T + bias
        assert (ours - target).norm() <= 1.05 * (theirs - target).norm()

    def test_the_same_columns_are_split_off(self):
        x, weight, bias = layer()
        module = self.theirs(weight, bias)
        with torch.inference_mode():
            module(x.half())
        assert module.state.idx.tolist() == llm_int8.outlier_columns(x).tolist() == [3, 17]
