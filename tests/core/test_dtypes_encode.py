"""Rounding: random numbers, every halfway case, subnormals, overflow, signs, NaN and infinity."""

from __future__ import annotations

import functools
import math

import bitsandbytes.functional
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.dtypes import CODEBOOKS, FORMATS, INTEGERS, all_values, cast, decode, encode
from labkit.core.errors import NonFiniteError, SchemeError

ALL_FORMATS = [*FORMATS, *INTEGERS, *CODEBOOKS]
# name -> (reference dtype, its bit pattern, overflow behaviour that it has)
REFERENCES = {
    "fp16": (np.float16, np.uint16, "inf"),
    "bf16": (ml_dtypes.bfloat16, np.uint16, "inf"),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, np.uint8, "nan"),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, np.uint8, "inf"),
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, np.uint8, "saturate"),
}


def hard_cases(name: str) -> np.ndarray:
    """Float32: all values, all midpoints, both with their float32 neighbours, noise, and edges."""
    fmt = FORMATS[name]
    grid = np.unique(all_values(name).numpy())
    grid = grid[np.isfinite(grid)].astype(np.float64)
    ties = (grid[:-1] + grid[1:]) / 2
    past = fmt.max + (grid[-1] - grid[-2]) * np.array([0.5, 1.0, 1.5])
    points = np.concatenate([grid, ties, past, -past])
    points = points[np.abs(points) <= np.finfo(np.float32).max].astype(np.float32)
    around = [np.nextafter(points, np.float32(s), dtype=np.float32) for s in (-np.inf, np.inf)]
    rng = np.random.default_rng(7)
    exponents = rng.uniform(
        math.log2(fmt.min_subnormal) - 2, min(math.log2(fmt.max) + 2, 127), 20_000
    )
    noise = (rng.choice([-1, 1], 20_000) * 2.0**exponents).astype(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -1e-45], np.float32)
    return np.concatenate([points, *around, noise, edges])


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.filterwarnings("ignore:overflow")
def test_codes_equal_the_reference(name: str) -> None:
    dtype, raw, overflow = REFERENCES[name]
    x = hard_cases(name)
    expected = x.astype(dtype).view(raw)
    np.testing.assert_array_equal(encode(x, name, overflow), expected)


@pytest.mark.parametrize(
    ("name", "dtype", "raw"),
    [
        ("fp16", torch.float16, torch.int16),
        ("bf16", torch.bfloat16, torch.int16),
        ("fp8_e4m3", torch.float8_e4m3fn, torch.uint8),
        ("fp8_e5m2", torch.float8_e5m2, torch.uint8),
    ],
)
def test_codes_equal_torch(name: str, dtype: torch.dtype, raw: torch.dtype) -> None:
    x = torch.from_numpy(hard_cases(name))
    if name == "fp8_e4m3":
        # Beyond 448 releases of torch differ: older ones make NaN, newer ones saturate.
        x = x[x.abs() <= 448]
    expected = x.to(dtype).view(raw).long() & (2 ** FORMATS[name].bits - 1)
    assert torch.equal(encode(x, name).long(), expected)


def test_e8m0_equals_ml_dtypes() -> None:
    rng = np.random.default_rng(3)
    powers = 2.0 ** np.arange(-149, 128)
    x = np.concatenate([powers, 1.5 * powers[:-1], 2.0 ** rng.uniform(-149, 127.99, 20_000)])
    x = np.concatenate([x, -x[:9], [0.0, -0.0, np.inf, -np.inf, np.nan]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    # Here ml_dtypes (and torch) round float32 subnormals up to 2**-126, away from the nearest.
    quirk = (x > 2.0**-127) & (x < 1.5 * 2.0**-127)
    expected = x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    np.testing.assert_array_equal(encode(x, "e8m0")[~quirk], expected[~quirk])
    assert quirk.any() and (encode(x, "e8m0")[quirk] == 0).all()


def test_float64_to_fp32_equals_numpy() -> None:
    rng = np.random.default_rng(5)
    x = rng.choice([-1, 1], 50_000) * 2.0 ** rng.uniform(-155, 130, 50_000)
    single = rng.standard_normal(10_000).astype(np.float32)
    ties = (single.astype(np.float64) + np.nextafter(single, np.float32(np.inf))) / 2
    x = np.concatenate([x, single, ties, [0.0, -0.0, np.inf, -np.inf, 1e300, 2.0**-150]])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float32).view(np.uint32)
    np.testing.assert_array_equal(encode(x, "fp32"), expected)


def test_float64_is_rounded_once() -> None:
    # Just above a tie of bf16, by less than float32 can tell: by way of float32 it rounds down.
    x = 1 + 2**-8 + 2**-40
    assert cast(x, "bf16") == 1 + 2**-7
    assert cast(torch.tensor(x, dtype=torch.float64).float(), "bf16").item() == 1.0


@pytest.mark.parametrize("name", ["fp32", *(n for n in REFERENCES if FORMATS[n].has_nan)])
def test_nan_stays_nan_with_its_sign(name: str) -> None:
    result = cast(torch.tensor([math.nan, -math.nan, 1.0]), name)
    assert result.isnan().tolist() == [True, True, False]
    sign_bit = encode(torch.tensor([math.nan, -math.nan]), name).long() >> (FORMATS[name].bits - 1)
    assert sign_bit.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["fp4_e2m1", "int4", "nf4"])
def test_nan_without_a_code_is_refused_with_its_position(name: str) -> None:
    x = torch.zeros(3, 4)
    x[1, 2] = math.nan
    for convert in (encode, cast):
        with pytest.raises(NonFiniteError, match=rf"{name}.*\[1, 2\]"):
            convert(x, name)


@pytest.mark.parametrize(
    ("name", "overflow", "expected"),
    [
        ("fp16", None, math.inf),
        ("fp16", "saturate", 65504.0),
        ("fp8_e5m2", None, math.inf),
        ("fp8_e5m2", "saturate", 57344.0),
        ("fp8_e4m3", None, 448.0),
        ("fp8_e4m3", "nan", math.nan),
        ("fp4_e2m1", None, 6.0),
        ("e8m0", None, math.nan),
        ("e8m0", "saturate", 2.0**127),
        ("int4", None, 7.0),
        ("nf4", None, 1.0),
    ],
)
@pytest.mark.parametrize("x", [1e39, math.inf])
def test_overflow(name: str, overflow: str | None, expected: float, x: float) -> None:
    assert cast(x, name, overflow) == pytest.approx(expected, abs=0, nan_ok=True)
    if name not in ("e8m0", "int4"):
        assert cast(-x, name, overflow) == pytest.approx(-expected, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "overflow"), [("fp8_e4m3", "inf"), ("fp16", "nan"), ("nf4", "inf")]
)
def test_overflow_without_a_code_is_refused(name: str, overflow: str) -> None:
    with pytest.raises(SchemeError, match=overflow):
        encode(1.0, name, overflow)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_round_to_even_and_saturate(bits: int) -> None:
    x = np.concatenate([np.arange(-300, 300) / 2, [-np.inf, np.inf, -1e30, 1e30]])
    expected = np.clip(np.rint(x), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    np.testing.assert_array_equal(cast(x, f"int{bits}"), expected)


@pytest.mark.parametrize(("name", "theirs"), [("nf4", "nf4"), ("fp4_bnb", "fp4")])
def test_codebook_choice_equals_bitsandbytes(name: str, theirs: str) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    x = x / x.abs().amax(dim=1, keepdim=True)
    packed, state = bitsandbytes.functional.quantize_4bit(x, blocksize=64, quant_type=theirs)
    assert torch.equal(state.absmax, torch.ones(64))
    high_nibble_first = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(x.shape)
    assert torch.equal(cast(x, name), decode(high_nibble_first, name))


def test_codebook_tie_goes_to_the_smaller_number() -> None:
    low, high = sorted(CODEBOOKS["nf4"].values)[:2]
    assert cast((low + high) / 2, "nf4") == low
    assert cast(math.nextafter((low + high) / 2, 1), "nf4") == high


@functools.cache
def finite_values(name: str) -> torch.Tensor:
    """Float64, ascending."""
    values = all_values(name).double()
    return values[values.isfinite()].unique()


@pytest.mark.parametrize("name", ALL_FORMATS)
@given(st.lists(st.floats(-500, 500, width=32), min_size=2, max_size=20))
def test_cast_is_idempotent_monotonic_and_nearest(name: str, numbers: list[float]) -> None:
    x = torch.tensor(sorted(numbers))
    if name == "e8m0":
        x = x.abs().clamp(min=2.0**-120).sort().values
    once = cast(x, name)
    assert torch.equal(cast(once, name), once)
    assert (once.diff() >= 0).all()
    if name != "fp32":
        values = finite_values(name)
        above = torch.searchsorted(values, x.double()).clamp(1, len(values) - 1)
        around = torch.stack([values[above - 1], values[above]])
        best = (x.double() - around).abs().amin(dim=0)
        assert torch.equal((x.double() - once.double()).abs(), best)


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_what_comes_in_decides_what_goes_out(name: str) -> None:
    array = np.linspace(0.25, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    from_tensor, from_array = cast(torch.from_numpy(array), name), cast(array, name)
    assert isinstance(from_tensor, torch.Tensor) and isinstance(from_array, np.ndarray)
    assert from_array.dtype == np.float32 and from_array.shape == array.shape
    np.testing.assert_array_equal(from_tensor.numpy(), from_array)
    np.testing.assert_array_equal(cast(array[:, ::-1].T, name), from_array[:, ::-1].T)
    assert cast(float(array[1, 2, 3]), name) == from_array[1, 2, 3]
    assert isinstance(encode(0.5, name), int) and isinstance(decode(1, name), float)
    assert cast(array[:0], name).shape == (0, 3, 4)


def test_code_dtypes_and_long_inputs() -> None:
    # Longer than one chunk, and not a multiple of it.
    x = torch.randn(3 * 65536 + 17, generator=torch.Generator().manual_seed(0))
    assert encode(x, "fp8_e4m3").dtype == encode(x, "nf4").dtype == torch.uint8
    assert encode(x, "fp16").dtype == torch.int32 and encode(x, "fp32").dtype == torch.int64
    assert torch.equal(cast(x, "bf16"), x.bfloat16().float())
    assert torch.equal(cast(x, "fp32"), x)
    assert not cast(x.requires_grad_(), "fp16").requires_grad


@pytest.mark.parametrize("x", ["0.5", [0.5], None, torch.tensor(1j)])
def test_what_is_no_array_of_real_numbers_is_refused(x: object) -> None:
    with pytest.raises(TypeError):
        cast(x, "fp16")
