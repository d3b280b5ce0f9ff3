import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization.observer import MinMaxObserver as TorchMinMax
from torch.ao.quantization.observer import MovingAverageMinMaxObserver as TorchMovingAverage

from labkit.core.affine import choose_qparams, fake_quantize, integer_range
from labkit.core.errors import CalibrationError, NonFiniteError
from labkit.core.observers import (
    OBSERVERS,
    EMAObserver,
    KLObserver,
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
)
from labkit.core.observers_histogram import BINS, Histogram
from labkit.core.observers_kl import entropy_threshold, kl_divergence, spread_over_levels

SEEDS = st.integers(0, 2**32 - 1)
every_observer = pytest.mark.parametrize("name", OBSERVERS)


def normal(seed, count):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def observed(observer, *batches):
    for batch in batches:
        observer.observe(batch)
    return observer


def error_of(x, lo, hi, bits, symmetric):
    scale, zero_point = choose_qparams(lo, hi, bits, symmetric)
    back = fake_quantize(x, scale, zero_point, *integer_range(bits, symmetric))
    return float((back.double() - x.double()).square().mean())


class TestEvery:
    @every_observer
    def test_nothing_observed(self, name):
        observer = observed(OBSERVERS[name](), torch.empty(0, 4))
        with pytest.raises(CalibrationError, match="no data"):
            observer.range()
        with pytest.raises(CalibrationError, match="no data"):
            observer.qparams(8, True)

    @every_observer
    def test_nan_is_refused_and_not_counted(self, name):
        observer = observed(OBSERVERS[name](), torch.tensor([-1.0, 2.0]))
        before = observer.range()
        with pytest.raises(NonFiniteError, match=r"observe .*\(1,\) = inf"):
            observer.observe(torch.tensor([0.0, float("inf")]))
        assert observer.range() == before and observer.count == 2

    @every_observer
    @pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-45, 1e30])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_constant_is_kept(self, name, value, symmetric):
        x = torch.full((5,), value)
        observer = observed(OBSERVERS[name](), x)
        lo, hi = observer.range(4, symmetric)
        assert lo <= hi and lo.dtype == hi.dtype == torch.float32 and lo.ndim == 0
        scale, zero_point = observer.qparams(4, symmetric)
        back = fake_quantize(x, scale, zero_point, *integer_range(4, symmetric))
        torch.testing.assert_close(back, x, rtol=1e-6, atol=torch.finfo(torch.float32).tiny)

    @every_observer
    @given(seed=SEEDS, shift=st.floats(-3, 3), symmetric=st.booleans())
    @settings(max_examples=10)
    def test_range_never_exceeds_the_data_and_zero(self, name, seed, shift, symmetric):
        x = normal(seed, 500) + shift
        lo, hi = observed(OBSERVERS[name](), x).range(8, symmetric)
        if symmetric:
            x = torch.cat([x, -x])
        assert min(float(x.min()), 0) <= float(lo) <= float(hi) <= max(float(x.max()), 0)

    @every_observer
    def test_qparams_are_those_of_the_range(self, name):
        observer = observed(OBSERVERS[name](), normal(0, 1000))
        assert observer.qparams(4, True) == choose_qparams(*observer.range(4, True), 4, True)

    @pytest.mark.parametrize("name", sorted(set(OBSERVERS) - {"ema"}))
    def test_order_and_cutting_of_batches_do_not_matter(self, name):
        x = torch.cat([normal(1, 100) * 1e-3, torch.zeros(50), normal(2, 100), normal(3, 9) * 50])
        whole = observed(OBSERVERS[name](), x)
        parts = observed(OBSERVERS[name](), *reversed(x.split(7)))
        assert whole.range(4, False) == parts.range(4, False)
        assert whole.range(8, True) == parts.range(8, True)


class TestMinMaxAndEMA:
    def test_same_as_torch(self):
        batches = [normal(seed, 64) * (seed + 1) for seed in range(5)]
        ours, theirs = observed(MinMaxObserver(), *batches), TorchMinMax()
        ema, torch_ema = observed(EMAObserver(0.75), *batches), TorchMovingAverage(0.25)
        for batch in batches:
            theirs(batch)
            torch_ema(batch)
        assert ours.range() == (theirs.min_val, theirs.max_val)
        torch.testing.assert_close(ema.range(), (torch_ema.min_val, torch_ema.max_val))

    def test_scale_and_zero_point_same_as_torch(self):
        theirs = TorchMinMax(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
        x = normal(7, 1000)
        theirs(x)
        scale, zero_point = theirs.calculate_qparams()
        ours = observed(MinMaxObserver(), x).qparams(8, False)
        torch.testing.assert_close(ours[0], scale.reshape(()))
        assert int(ours[1]) == int(zero_point)

    def test_an_outlier_fades_from_the_average(self):
        spike = torch.tensor([-1.0, 100.0])
        calm = [torch.tensor([-1.0, 1.0])] * 50
        assert float(observed(EMAObserver(0.9), spike, *calm).range()[1]) < 2
        assert float(observed(MinMaxObserver(), spike, *calm).range()[1]) == 100

    @pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0])
    def test_momentum_out_of_range(self, momentum):
        with pytest.raises(CalibrationError, match="momentum"):
            EMAObserver(momentum)


class TestHistogram:
    @given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=30))
    def test_counts_are_those_of_numpy(self, values):
        histogram = Histogram()
        for value in values:
            histogram.add(torch.tensor([value]))
        if not any(values):
            assert histogram.counts[BINS // 2] == len(values)
            return
        edges = (np.arange(BINS + 1) - BINS // 2) * histogram.width
        expected, _ = np.histogram(np.array(values), edges)
        assert np.array_equal(histogram.counts, expected)
        assert histogram.limit / 2 <= max(map(abs, values)) < histogram.limit
        assert histogram.absolute().sum() == len(values)

    def test_memory_does_not_grow(self):
        histogram = Histogram()
        for exponent in range(-20, 20):
            histogram.add(normal(exponent + 20, 1000) * 10.0**exponent)
        assert histogram.counts.shape == (BINS,) and histogram.counts.sum() == 40_000


class TestPercentile:
    @given(SEEDS, st.sampled_from([60.0, 90.0, 99.0, 99.9]), st.integers(1, 3000))
    def test_is_numpys_percentile_to_within_a_bin(self, seed, percentile, count):
        x = normal(seed, count).exp() - 1
        values = x.double().numpy()
        observer = observed(PercentileObserver(percentile), *x.split(100))
        bin_width = float(x.abs().max()) * 2.0**-12

        def check(found, sample, percent):
            # A hair to both sides: percent * count may fall on a whole number.
            low, high = (
                np.quantile(sample, np.clip(percent / 100 + d, 0, 1), method="inverted_cdf")
                for d in (-1e-9, 1e-9)
            )
            assert low - bin_width <= float(found) <= high + bin_width

        lo, hi = observer.range(symmetric=False)
        check(hi, values, percentile)
        check(-lo, -values, percentile)
        lo, hi = observer.range(symmetric=True)
        check(hi, np.abs(values), percentile)
        assert lo == -hi

    def test_symmetric_is_a_percentile_of_absolute_values(self):
        x = torch.linspace(-1, 1, 10_001)
        observer = observed(PercentileObserver(90.0), x)
        assert float(observer.range(symmetric=True)[1]) == pytest.approx(0.9, abs=1e-3)
        assert float(observer.range(symmetric=False)[1]) == pytest.approx(0.8, abs=1e-3)

    def test_hundred_is_min_max(self):
        x = normal(0, 333)
        observer = observed(PercentileObserver(100.0), x)
        assert observer.range() == (x.min(), x.max())
        assert observer.range(symmetric=True)[1] == x.abs().max()

    @pytest.mark.parametrize("percentile", [0.999, 50.0, 100.1])
    def test_out_of_range(self, percentile):
        with pytest.raises(CalibrationError, match="percentile"):
            PercentileObserver(percentile)


class TestMSE:
    @given(SEEDS, st.integers(2, 8), st.booleans())
    @settings(max_examples=15)
    def test_error_is_at_most_that_of_min_max(self, seed, bits, symmetric):
        x = normal(seed, 2000) ** 3
        lo, hi = observed(MSEObserver(), x).range(bits, symmetric)
        best = error_of(x, lo, hi, bits, symmetric)
        everything = error_of(x, x.min(), x.max(), bits, symmetric)
        assert best <= everything * 1.01  # the histogram's bins stand at their middles

    def test_finds_the_clipping_of_a_normal_distribution(self):
        # Banner et al. 2019, table of optimal clipping: 2.55 sigma for 4 bits, full 16 levels.
        _, hi = observed(MSEObserver(), normal(0, 200_000)).range(4, False)
        assert float(hi) == pytest.approx(2.55, abs=0.15)

    def test_is_the_least_of_its_curve_and_no_clipping_is_on_the_grid(self):
        x = normal(0, 2000)
        observer = observed(MSEObserver(steps=50), x)
        ratios, errors = observer.curve(4, True)
        assert ratios[0] == 1.0 and len(ratios) == len(errors) == 50
        exact = [error_of(x, -r * x.abs().max(), r * x.abs().max(), 4, True) for r in ratios]
        np.testing.assert_allclose(errors, exact, rtol=0.02)
        hi = float(observer.range(4, True)[1])
        assert hi == pytest.approx(float(ratios[errors.argmin()] * x.abs().max()))

    def test_two_values_are_not_clipped(self):
        lo, hi = observed(MSEObserver(), torch.tensor([-1.0, 1.0])).range(8, True)
        assert (float(lo), float(hi)) == (-1.0, 1.0)

    def test_outlier_on_one_side_does_not_shrink_the_other(self):
        x = torch.cat([normal(0, 100_000), torch.tensor([40.0])])
        lo, hi = observed(MSEObserver(), x).range(4, False)
        assert -3 < float(lo) < -2 and 2 < float(hi) < 10

    @pytest.mark.parametrize("arguments", [(1, 0.1), (10, 0.0), (10, 1.0)])
    def test_out_of_range(self, arguments):
        with pytest.raises(CalibrationError, match="steps"):
            MSEObserver(*arguments)


class TestKL:
    def test_example_of_the_slides(self):
        # Migacz 2017, "pseudocode" example: 8 bins to 2 levels, empty bins stay empty.
        counts = np.array([1.0, 0, 2, 3, 5, 3, 1, 7])
        merged = spread_over_levels(counts, counts > 0, 2)
        np.testing.assert_allclose(merged, [2, 0, 2, 2, 4, 4, 4, 4])

    def test_divergence(self):
        p, q = np.array([0.5, 0.5, 0.0]), np.array([9.0, 3.0, 0.0])
        expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
        assert kl_divergence(p, q) == pytest.approx(expected)
        assert kl_divergence(p, p * 7) == pytest.approx(0.0, abs=1e-12)
        assert kl_divergence(p, np.array([1.0, 0.0, 1.0])) == float("inf")

    def test_same_as_a_plain_search(self):
        counts = np.random.default_rng(0).poisson(200 * np.exp(-np.arange(60) / 9))
        losses = {}
        for kept in range(8, np.flatnonzero(counts)[-1] + 2):
            p = counts[:kept].astype(float)
            p[-1] += counts[kept:].sum()
            runs = [range(r * kept // 8, (r + 1) * kept // 8) for r in range(8)]
            q = np.zeros(kept)
            for run in runs:
                filled = [i for i in run if p[i] > 0]
                for i in filled:
                    q[i] = max(sum(counts[j] for j in run) / len(filled), 1e-4)
            p, q = p / p.sum(), q / q.sum()
            losses[kept] = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)
        assert entropy_threshold(counts, 8) == min(losses, key=losses.get)

    def test_clips_an_outlier_but_not_a_flat_distribution(self):
        x = normal(0, 100_000)
        lo, hi = observed(KLObserver(), torch.cat([x, torch.tensor([100.0])])).range(8, True)
        assert lo == -hi and 2 < float(hi) < 20
        flat = torch.linspace(-1, 1, 100_000)
        assert float(observed(KLObserver(), flat).range(8, True)[1]) == pytest.approx(1, abs=0.02)

    def test_zeros_after_relu_do_not_matter(self):
        x = normal(0, 50_000).relu()
        x = x[x > 0]
        alone = observed(KLObserver(), x).range(8, False)
        with_zeros = observed(KLObserver(), x, torch.zeros(500_000)).range(8, False)
        assert with_zeros[1] == alone[1] and float(with_zeros[0]) == 0.0

    def test_few_filled_bins_keep_everything(self):
        assert entropy_threshold(np.array([5, 0, 3, 0, 0]), 8) == 3
