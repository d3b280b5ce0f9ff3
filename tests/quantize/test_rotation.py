"""Rotations: orthogonal at every size, exact to undo, and good at spreading."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.quantize.rotation import (
    fast_hadamard,
    hadamard,
    kurtosis,
    random_hadamard,
    random_orthogonal,
    require_orthogonal,
    rotate_input,
    rotate_output,
)


def is_orthogonal(q):
    eye = torch.eye(len(q), dtype=q.dtype)
    return torch.allclose(q @ q.T, eye, atol=1e-12) and torch.allclose(q.T @ q, eye, atol=1e-12)


@given(st.integers(1, 96), st.integers(0, 1000))
def test_random_hadamard_is_orthogonal_at_every_size(n, seed):
    q = random_hadamard(n, seed)
    assert q.shape == (n, n) and is_orthogonal(q)
    assert torch.equal(q, random_hadamard(n, seed))


@pytest.mark.parametrize("n", [2, 64, 256])
def test_entries_of_a_power_of_two_are_all_alike(n):
    entries = random_hadamard(n, 1).abs()
    torch.testing.assert_close(entries, torch.full_like(entries, 1 / math.sqrt(n)))
    assert not torch.equal(random_hadamard(n, 1), random_hadamard(n, 2))


def test_hadamard_is_sylvesters():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    expected = torch.from_numpy(scipy_linalg.hadamard(16).astype(float)) / 4
    torch.testing.assert_close(hadamard(16), expected)


@given(st.sampled_from([1, 2, 8, 64]), st.integers(0, 1000))
def test_fast_transform_is_the_product(n, seed):
    x = torch.randn(3, 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fast_hadamard(x), x @ hadamard(n))
    torch.testing.assert_close(fast_hadamard(fast_hadamard(x)), x)


@given(st.sampled_from([3, 8, 12, 32]), st.integers(0, 1000))
def test_rotating_both_sides_changes_no_output(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, n, dtype=torch.float64, generator=generator)
    first = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    second = torch.randn(6, n, dtype=torch.float64, generator=generator)
    q = random_hadamard(n, seed)
    torch.testing.assert_close((x @ q) @ rotate_input(second, q).T, x @ second.T)
    h = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(h @ rotate_output(first, q).T, (h @ first.T) @ q)


def test_a_loud_channel_is_spread_and_the_tails_go():
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    x[:, 7] *= 50
    turned = x @ random_hadamard(256).float()
    assert kurtosis(x) > 50 and kurtosis(turned) < 6
    assert float(turned.abs().max()) < 0.2 * float(x.abs().max())
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))


def test_signs_keep_a_row_of_the_matrix_from_being_gathered():
    row = hadamard(64)[5]
    assert float((row @ hadamard(64)).abs().max()) == pytest.approx(1.0)
    assert float((row @ random_hadamard(64, 3)).abs().max()) < 0.6


def test_kurtosis_of_known_shapes():
    generator = torch.Generator().manual_seed(0)
    assert kurtosis(torch.randn(100_000, generator=generator)) == pytest.approx(3, abs=0.1)
    assert kurtosis(torch.tensor([-1.0, 1.0])) == pytest.approx(1)
    assert kurtosis(torch.rand(100_000, generator=generator)) == pytest.approx(1.8, abs=0.05)


def test_bad_input_is_refused():
    for n in (0, 3, 12):
        with pytest.raises(SchemeError):
            hadamard(n)
    with pytest.raises(SchemeError):
        fast_hadamard(torch.ones(2, 12))
    for make in (random_hadamard, random_orthogonal):
        with pytest.raises(SchemeError):
            make(0)
    with pytest.raises(SchemeError, match="not orthogonal"):
        rotate_input(torch.ones(2, 4), hadamard(4) * 2)
    with pytest.raises(SchemeError, match="not orthogonal"):
        require_orthogonal(torch.ones(3, 3))
    for shape in [(3,), (3, 4), ()]:
        with pytest.raises(ShapeError):
            require_orthogonal(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"\[6, 6\]"):
        rotate_input(torch.ones(2, 6), hadamard(4))
    with pytest.raises(NonFiniteError):
        require_orthogonal(torch.full((2, 2), math.nan))
    for bad in (torch.ones(5), torch.tensor([1.0]), torch.empty(0)):
        with pytest.raises(ShapeError, match="spread"):
            kurtosis(bad)
