"""Fields, neighbours and gaps, against the standard library, NumPy and torch."""

from __future__ import annotations

import functools
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.dtypes import (
    CODEBOOKS,
    FORMATS,
    INTEGERS,
    FloatFormat,
    all_values,
    decode,
    encode,
    fields,
    neighbours,
    spacing,
)
from labkit.core.errors import NonFiniteError, PackingError


def test_fields_of_known_numbers() -> None:
    assert fields(encode(-1.5, "fp16"), "fp16") == ("1", "01111", "1000000000")
    assert fields(encode(448.0, "fp8_e4m3"), "fp8_e4m3") == ("0", "1111", "110")
    assert fields(encode(6.0, "fp4_e2m1"), "fp4_e2m1") == ("0", "11", "1")
    assert fields(encode(2.0, "e8m0"), "e8m0") == ("", "10000000", "")
    assert fields(encode(-3.0, "int4"), "int4") == ("1", "", "101")
    assert fields(5, "nf4") == ("", "", "0101")


@given(st.floats(width=32, allow_nan=False))
def test_fields_of_fp32_are_the_bits_that_python_packs(x: float) -> None:
    bits = f"{struct.unpack('>I', struct.pack('>f', x))[0]:032b}"
    assert fields(encode(x, "fp32"), "fp32") == (bits[0], bits[1:9], bits[9:])


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("fp32", "e8m0")])
def test_fields_assemble_to_the_number(name: str) -> None:
    fmt = FORMATS[name]
    for code in range(0, 2**fmt.bits, max(1, 2**fmt.bits // 997)):
        sign, exponent, mantissa = fields(code, name)
        value = decode(code, name)
        if math.isnan(value) or math.isinf(value):
            continue
        lead = 1 if int(exponent, 2) else 0
        fraction = int(mantissa, 2) / 2 ** len(mantissa)
        power = max(int(exponent, 2), 1) - fmt.bias
        assert value == (-1) ** int(sign) * (lead + fraction) * 2.0**power


def test_fields_of_no_code_are_refused() -> None:
    with pytest.raises(PackingError, match="fp4_e2m1"):
        fields(16, "fp4_e2m1")


@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_neighbours_in_fp16_equal_numpy(x: float) -> None:
    expected = (
        float(np.nextafter(np.float16(x), np.float16(-np.inf))),
        float(np.nextafter(np.float16(x), np.float16(np.inf))),
    )
    assert neighbours(x, "fp16") == expected


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_neighbours_in_fp32_equal_numpy(x: float) -> None:
    expected = (
        float(np.nextafter(np.float32(x), np.float32(-np.inf))),
        float(np.nextafter(np.float32(x), np.float32(np.inf))),
    )
    assert neighbours(x, "fp32") == expected


@given(st.floats(-1e38, 1e38))
def test_neighbours_in_fp32_of_a_number_between(x: float) -> None:
    below, above = neighbours(x, "fp32")
    assert below < x < above
    assert np.float32(below) == below and np.float32(above) == above
    between = np.nextafter(np.float32(below), np.float32(np.inf))
    assert between in (np.float32(above), np.float32(x))


@functools.cache
def numbers(name: str) -> np.ndarray:
    """Every number of a format, infinities too: float64."""
    values = all_values(name).double().numpy()
    return values[~np.isnan(values)]


@pytest.mark.parametrize("name", [n for n in [*FORMATS, *INTEGERS, *CODEBOOKS] if n != "fp32"])
@given(st.floats(-500, 500))
def test_nothing_lies_between_neighbours(name: str, x: float) -> None:
    below, above = neighbours(x, name)
    values = numbers(name)
    assert below < x < above
    inside = values[(values > below) & (values < above)]
    assert set(inside) <= {x}
    assert below in values or below == -math.inf
    assert above in values or above == math.inf


def test_neighbours_at_the_ends() -> None:
    assert neighbours(65504, "fp16") == (65472, math.inf)
    assert neighbours(448, "fp8_e4m3") == (416, math.inf)
    assert neighbours(-8, "int4") == (-math.inf, -7)
    assert neighbours(math.inf, "fp32") == (FORMATS["fp32"].max, math.inf)
    assert neighbours(-1e300, "fp32") == (-math.inf, -FORMATS["fp32"].max)
    assert neighbours(0.0, "fp32") == (-(2.0**-149), 2.0**-149)
    with pytest.raises(NonFiniteError):
        neighbours(math.nan, "fp16")


def test_neighbours_without_infinity_above_16_bits() -> None:
    fmt = FloatFormat("e7m10_finite", exponent_bits=7, mantissa_bits=10, specials="none")
    assert neighbours(fmt.max, fmt) == (fmt.max - 2.0 ** (64 - 10), math.inf)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_spacing_equals_numpy(name: str, dtype: type) -> None:
    rng = np.random.default_rng(2)
    fmt = FORMATS[name]
    x = 2.0 ** rng.uniform(math.log2(fmt.min_subnormal), math.log2(fmt.max), 5000)
    # Cut to the format without rounding up, so that x stays in its binade.
    x = np.concatenate([x.astype(dtype), 2.0 ** np.arange(-14, 15), [0.0]]).astype(dtype)
    x = x[x < fmt.max]
    np.testing.assert_array_equal(spacing(x, name), np.spacing(x).astype(np.float32))
    np.testing.assert_array_equal(spacing(-x, name), np.spacing(x).astype(np.float32))


def test_spacing_of_grids_without_an_exponent() -> None:
    assert spacing(2.5, "int4") == 1.0
    assert spacing(7, "int4") == 1.0
    assert spacing(-1.0, "nf4") == pytest.approx(1 - 0.6961928009986877)
    assert spacing(0.0, "nf4") == pytest.approx(0.07958029955625534)
    assert spacing(5.0, "fp4_e2m1") == 2.0
    assert spacing(5.0, "e8m0") == 4.0


@pytest.mark.parametrize(("name", "x"), [("fp16", 7e4), ("int4", 8), ("nf4", -1.1), ("e8m0", -1)])
def test_spacing_is_nan_where_there_is_no_grid(name: str, x: float) -> None:
    assert math.isnan(spacing(x, name))
    assert math.isnan(spacing(math.nan, name))
    assert spacing(torch.tensor([x, math.nan]), name).isnan().all()
