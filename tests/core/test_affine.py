import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization.observer import MinMaxObserver

from labkit.core.affine import choose_qparams, dequantize, fake_quantize, integer_range, quantize
from labkit.core.errors import CalibrationError, NonFiniteError, SchemeError

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
CASES = st.tuples(st.integers(2, 8), st.booleans(), st.booleans())


def grid(lo, hi, case):
    bits, symmetric, narrow = case
    scale, zero_point = choose_qparams(lo, hi, bits, symmetric, narrow_range=narrow)
    return scale, zero_point, *integer_range(bits, symmetric, narrow)


@given(st.lists(FINITE, min_size=1, max_size=40), CASES)
def test_error_is_at_most_half_a_step_in_the_range(values, case):
    x = torch.tensor(values)
    scale, zero_point, qmin, qmax = grid(x.min(), x.max(), case)
    error = (fake_quantize(x, scale, zero_point, qmin, qmax).double() - x.double()).abs()
    # x / scale, scale itself and the product each carry a relative rounding error of 2^-24.
    slack = x.double().abs() * 2.0**-22
    assert bool((error <= scale.double() / 2 + slack).all())


@given(st.lists(FINITE, min_size=1, max_size=40), CASES)
def test_quantizing_twice_changes_nothing(values, case):
    x = torch.tensor(values)
    params = grid(x.min(), x.max(), case)
    once = fake_quantize(x, *params)
    assert torch.equal(fake_quantize(once, *params), once)


@given(FINITE, FINITE, CASES)
def test_zero_is_exact_and_every_code_comes_back(a, b, case):
    scale, zero_point, qmin, qmax = grid(min(a, b), max(a, b), case)
    assert qmin <= int(zero_point) <= qmax
    assert float(fake_quantize(torch.zeros(1), scale, zero_point, qmin, qmax)) == 0.0
    codes = torch.arange(qmin, qmax + 1, dtype=torch.int32)
    values = dequantize(codes, scale, zero_point)
    assert bool(torch.isfinite(values).all())
    assert torch.equal(quantize(values, scale, zero_point, qmin, qmax), codes)


@given(st.lists(FINITE, min_size=2, max_size=40), CASES)
def test_order_is_kept(values, case):
    x = torch.tensor(sorted(values))
    codes = quantize(x, *grid(x.min(), x.max(), case))
    assert bool((codes.diff() >= 0).all())


@given(st.lists(FINITE, min_size=1, max_size=20), st.integers(2, 8))
def test_narrow_symmetric_codes_change_sign_with_x(values, bits):
    x = torch.tensor(values)
    scale, _, qmin, qmax = grid(x.min(), x.max(), (bits, True, True))
    assert torch.equal(quantize(-x, scale, 0, qmin, qmax), -quantize(x, scale, 0, qmin, qmax))
    if float(x.abs().max()) > qmax * 2.0**-126:
        assert int(quantize(x.abs().max(), scale, 0, qmin, qmax)) == qmax


def agree_with_torch(x, ours, theirs, scale):
    """torch multiplies by 1 / scale, we divide: they may part only where x is half-way."""
    steps = (x.double() / scale.double()).abs()
    halfway = ((steps - steps.floor() - 0.5).abs() <= steps * 2.0**-22).expand(x.shape)
    assert torch.equal(ours[~halfway], theirs[~halfway])
    assert bool(((ours - theirs).abs() <= scale * 1.001).all())


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.integers(-20, 20),
    CASES,
)
def test_agrees_with_torch_per_tensor(shape, seed, exponent, case):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2.0**exponent
    # A range of half of the data, so that clipping is compared too.
    scale, zero_point, qmin, qmax = grid(x.min() / 2, x.abs().max() / 2, case)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), qmin, qmax)
    agree_with_torch(x, fake_quantize(x, scale, zero_point, qmin, qmax), theirs, scale)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(0, 2**32 - 1), CASES)
def test_agrees_with_torch_per_channel(shape, seed, case):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    axes = tuple(range(1, x.ndim))
    # A range of half of the data, so that clipping is compared too.
    scale, zero_point, qmin, qmax = grid(-x.abs().amax(axes) / 2, x.abs().amax(axes) / 3, case)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, qmin, qmax)
    column = (-1,) + (1,) * (x.ndim - 1)
    ours = fake_quantize(x, scale.reshape(column), zero_point.reshape(column), qmin, qmax)
    agree_with_torch(x, ours, theirs, scale.reshape(column))


def test_half_rounds_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize(x, 1.0, 0, -7, 7).tolist() == [-2, -2, 0, 0, 2, 2]


def test_clamps_after_adding_the_zero_point_and_before_the_cast():
    # Clamped before the zero-point is added, 20 would stop at 15 and end at 5.
    assert quantize(torch.tensor([20.0]), 1.0, -10, 0, 15).tolist() == [10]
    # 1e30 has no int32: cast first it would become a negative number.
    assert quantize(torch.tensor([1e30, -1e30]), 1e-3, 128, 0, 255).tolist() == [255, 0]
    assert quantize(torch.tensor([3e38, -3e38]), 1e-30, 0, -127, 127).tolist() == [127, -127]


def test_dequantize_of_uint8_does_not_wrap():
    codes = torch.tensor([0, 255], dtype=torch.uint8)
    zero_point = torch.tensor(200, dtype=torch.uint8)
    assert dequantize(codes, 0.5, zero_point).tolist() == [-100.0, 27.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_computed_at_least_in_float32(dtype):
    x = torch.linspace(-1, 1, 101, dtype=torch.float64).to(dtype)
    codes = quantize(x, 1 / 127, 0, -127, 127)
    expected = torch.round(x.double() / torch.tensor(1 / 127).to(torch.float32).double())
    assert codes.dtype == torch.int32 and torch.equal(codes, expected.to(torch.int32))


def test_full_range_reaches_the_lowest_code():
    scale, zero_point = choose_qparams(-7.5, 7.5, 4, True, narrow_range=False)
    assert (float(scale), int(zero_point)) == (1.0, 0)
    assert quantize(torch.tensor([-7.6, 7.6]), scale, zero_point, -8, 7).tolist() == [-8, 7]


def test_known_values():
    assert [float(v) for v in choose_qparams(-1.0, 3.0, 2, False)] == [
        pytest.approx(4 / 3, rel=1e-7),
        1,
    ]
    assert float(choose_qparams(-254.0, 1.0, 8, True)[0]) == 2.0
    scale, zero_point = choose_qparams(
        torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 255.0]), 8, False
    )
    assert zero_point.tolist() == [64, 0] and float(scale[1]) == 1.0
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32


@given(FINITE, FINITE, st.integers(2, 8))
def test_same_parameters_as_torchs_observer(a, b, bits):
    observer = MinMaxObserver(dtype=torch.quint8, quant_min=0, quant_max=2**bits - 1, eps=2.0**-126)
    observer(torch.tensor([a, b]))
    theirs = observer.calculate_qparams()
    scale, zero_point = choose_qparams(min(a, b), max(a, b), bits, False)
    if a or b:
        torch.testing.assert_close(scale, theirs[0].reshape(()), rtol=2e-7, atol=0)
        # torch subtracts in float32; next to a tie its zero-point may be the neighbour.
        exact = -min(a, b, 0.0) / float(scale)
        near_tie = abs(exact % 1 - 0.5) < 1e-4
        assert abs(int(zero_point) - int(theirs[1])) <= near_tie


class TestDegenerate:
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_all_zero(self, symmetric):
        scale, zero_point = choose_qparams(0.0, 0.0, 8, symmetric)
        assert (float(scale), int(zero_point)) == (1.0, 0)

    @pytest.mark.parametrize("value", [3.7, -3.7, 1e-30, -1e30])
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("bits", [2, 3, 8])
    def test_constant_comes_back(self, value, symmetric, bits):
        x = torch.full((3,), value)
        back = fake_quantize(x, *grid(x.min(), x.max(), (bits, symmetric, True)))
        torch.testing.assert_close(back, x, rtol=2**-22, atol=0)

    @pytest.mark.parametrize("value", [1e-45, -1e-40, 1e-38])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_subnormal_range_has_a_scale_with_a_finite_reciprocal(self, value, symmetric):
        x = torch.tensor([value])
        params = grid(min(value, 0), max(value, 0), (8, symmetric, True))
        assert float(params[0]) == torch.finfo(torch.float32).tiny
        assert bool(torch.isfinite(1 / params[0]))
        assert float((fake_quantize(x, *params) - x).abs()) <= float(params[0]) / 2

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_largest_range_stays_finite(self, symmetric):
        limit = torch.finfo(torch.float32).max / 2
        params = grid(-limit, limit, (2, symmetric, False))
        back = fake_quantize(torch.tensor([-limit, limit]), *params)
        assert bool(torch.isfinite(back).all())
        with pytest.raises(CalibrationError, match="overflow"):
            choose_qparams(-limit, limit * 1.01, 8, symmetric)


class TestStoredScale:
    @given(st.floats(1e-9, 6e4), st.integers(2, 8), st.booleans())
    def test_float16_scale_is_never_zero_and_keeps_the_bound(self, top, bits, symmetric):
        scale, zero_point = choose_qparams(
            -top / 3, top, bits, symmetric, scale_dtype=torch.float16
        )
        qmin, qmax = integer_range(bits, symmetric)
        x = torch.linspace(-top / 3, top, 101, dtype=torch.float64)
        error = (fake_quantize(x, scale, zero_point, qmin, qmax).double() - x).abs().max()
        assert scale.dtype == torch.float16 and float(scale) > 0
        assert float(error) <= float(scale) * (0.5 + (qmax - qmin) * 2.0**-11 + 1e-5)

    def test_subnormal_float16_scale_is_rounded_up(self):
        step = 2.0**-24
        scale, _ = choose_qparams(0.0, 127 * 1.25 * step, 8, True, scale_dtype=torch.float16)
        assert float(scale) == 2 * step

    def test_scale_beyond_float16_is_refused(self):
        with pytest.raises(SchemeError, match="float32"):
            choose_qparams(0.0, 1e6, 2, True, scale_dtype=torch.float16)

    def test_integer_scale_dtype_is_refused(self):
        with pytest.raises(SchemeError, match="scale_dtype"):
            choose_qparams(0.0, 1.0, 8, True, scale_dtype=torch.int32)


class TestRefused:
    def test_nan_and_infinity_are_named_with_positions(self):
        x = torch.zeros(3, 4)
        x[1, 2], x[2, 0] = float("nan"), float("-inf")
        with pytest.raises(NonFiniteError, match=r"2 of 12 .*\(1, 2\) = nan, \(2, 0\) = -inf"):
            quantize(x, 1.0, 0, -7, 7)

    def test_only_the_first_positions_are_listed(self):
        with pytest.raises(NonFiniteError, match=r"9 of 9 .*\(4,\) = inf and 4 more"):
            quantize(torch.full((9,), float("inf")), 1.0, 0, -7, 7)

    @pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, float("inf"))])
    def test_range_that_is_not_finite(self, bounds):
        with pytest.raises(NonFiniteError, match="bounds"):
            choose_qparams(*bounds, 8, True)

    def test_range_upside_down(self):
        with pytest.raises(CalibrationError, match="1 of 2"):
            choose_qparams(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), 8, True)

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
    def test_scale_that_is_not_positive(self, scale):
        with pytest.raises(SchemeError, match="scales are zero, negative or not finite"):
            quantize(torch.ones(2), scale, 0, -7, 7)

    def test_one_bit_symmetric(self):
        with pytest.raises(SchemeError, match="2 to 8"):
            integer_range(1, True)


def test_everything_broadcasts():
    x, zero_point = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 5, 10])
    assert quantize(x, 1.0, zero_point, 0, 15).tolist() == [[1, 6, 11], [2, 7, 12]]


def test_empty_tensor_has_no_codes():
    assert quantize(torch.empty(0, 3), 1.0, 0, -7, 7).shape == (0, 3)


def test_input_is_not_changed():
    x = torch.randn(5)
    before = x.clone()
    fake_quantize(x, 0.1, 3, 0, 15)
    assert torch.equal(x, before)
