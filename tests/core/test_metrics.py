import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from labkit.core import metrics
from labkit.core.errors import NonFiniteError, ShapeError
from labkit.core.metrics import cosine, logit_kl, max_abs_error, mse, sqnr_db
from labkit.evaluate import resident

ALL = [mse, max_abs_error, sqnr_db, cosine, logit_kl]
SEEDS = st.integers(0, 2**32 - 1)


def pair(seed, shape=(7, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@given(SEEDS)
def test_same_as_torch(seed):
    x, y = pair(seed)
    assert mse(x, y) == pytest.approx(float(functional.mse_loss(y, x)), rel=1e-5)
    assert max_abs_error(x, y) == pytest.approx(float((x - y).abs().max()))
    expected = functional.cosine_similarity(x.reshape(-1), y.reshape(-1), dim=0)
    assert cosine(x, y) == pytest.approx(float(expected), abs=1e-6)
    expected = functional.kl_div(
        y.log_softmax(-1), x.log_softmax(-1), reduction="batchmean", log_target=True
    )
    assert logit_kl(x, y) == pytest.approx(float(expected), rel=1e-4)


def test_known_values():
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert mse(x, y) == 0.125 and max_abs_error(x, y) == 0.5
    assert sqnr_db(x, y) == pytest.approx(20.0)
    assert cosine(x, torch.tensor([-4.0, 3.0])) == pytest.approx(0.0, abs=1e-12)


def test_one_bit_is_worth_six_decibels():
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    coarse, fine = (torch.round(x * n) / n for n in (128, 256))
    assert sqnr_db(x, fine) - sqnr_db(x, coarse) == pytest.approx(6.02, abs=0.1)


def test_sqnr_keeps_the_mean():
    x = torch.full((4,), 10.0)
    assert sqnr_db(x, x + 1) == pytest.approx(20.0)


@given(SEEDS, st.sampled_from([2.0**-130, 1e-20, 1e-3, 1e3, 1e20, 2.0**120]))
def test_ratios_do_not_depend_on_the_unit(seed, unit):
    x, y = pair(seed)
    assert sqnr_db(x * unit, y * unit) == pytest.approx(sqnr_db(x, y), abs=1e-3)
    assert cosine(x * unit, y * unit) == pytest.approx(cosine(x, y), abs=1e-4)
    assert cosine(x, x * unit) == pytest.approx(1.0, abs=1e-4)


@given(SEEDS, st.integers(1, 40))
def test_sqnr_does_not_depend_on_how_it_is_cut(seed, elements):
    x, y = pair(seed)
    whole = sqnr_db(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_ELEMENTS", elements)
        assert sqnr_db(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.skipif(not resident.available(), reason="memory is read from /proc")
def test_sqnr_of_a_large_layer_takes_no_memory_of_its_size():
    x = torch.ones(2**24)  # 64 MiB; as float64 twice that
    y = x * 1.5
    sqnr_db(x[:4096], y[:4096])
    if not resident.reset_peak():
        pytest.skip("this system keeps the peak")
    before = resident.resident_bytes()
    sqnr_db(x, y)
    assert resident.peak_bytes() - before < 48 * 2**20


def test_without_error_and_without_signal():
    x, zero = torch.tensor([1.0, -2.0]), torch.zeros(2)
    assert mse(x, x) == 0.0 and cosine(x, x) == pytest.approx(1.0) and logit_kl(x, x) == 0.0
    assert sqnr_db(x, x) == sqnr_db(zero, zero) == math.inf
    assert sqnr_db(zero, x) == -math.inf
    assert cosine(zero, zero) == 1.0 and cosine(zero, x) == cosine(x, zero) == 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_kl_is_a_mean_over_tokens_and_ignores_a_shift(seed):
    x, y = pair(seed, (2, 130, 5))
    whole = logit_kl(x, y)
    tokens = [logit_kl(a, b) for a, b in zip(x.reshape(-1, 5), y.reshape(-1, 5), strict=True)]
    assert whole == pytest.approx(sum(tokens) / 260) and whole > 0
    assert logit_kl(x + 3, y - 100) == pytest.approx(whole, rel=1e-3)


def test_kl_weighs_by_the_reference():
    certain, uniform = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert logit_kl(certain, uniform) == pytest.approx(math.log(2))
    assert logit_kl(uniform, certain) == pytest.approx(50 - math.log(2))


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
class TestEvery:
    def test_half_precision_is_computed_in_float64(self, metric):
        x, y = (t.to(torch.float16) for t in pair(0, (400, 50)))
        assert metric(x, y) == metric(x.double(), y.double())

    @pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((2, 1), (2, 3)), ((0, 3), (0, 3))])
    def test_shapes_that_differ_or_are_empty(self, metric, shapes):
        with pytest.raises(ShapeError, match="shapes"):
            metric(torch.zeros(shapes[0]), torch.zeros(shapes[1]))

    def test_nan_is_refused(self, metric):
        with pytest.raises(NonFiniteError, match=r"approximation .*\(1,\) = nan"):
            metric(torch.zeros(2), torch.tensor([0.0, float("nan")]))


def test_kl_needs_a_vocabulary():
    with pytest.raises(ShapeError, match="vocabulary"):
        logit_kl(torch.tensor(1.0), torch.tensor(2.0))
