"""Every code of every format, against the library that defines it."""

from __future__ import annotations

import bitsandbytes.functional
import ml_dtypes
import numpy as np
import pytest
import torch

from labkit.core.dtypes import CODEBOOKS, FORMATS, INTEGERS, FloatFormat, all_values, decode, encode
from labkit.core.errors import PackingError, SchemeError

TORCH_DTYPES = {
    "fp16": (torch.float16, torch.int16),
    "bf16": (torch.bfloat16, torch.int16),
    "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8),
    "fp8_e5m2": (torch.float8_e5m2, torch.uint8),
}
ML_DTYPES = {
    "bf16": (ml_dtypes.bfloat16, np.uint16),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, np.uint8),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, np.uint8),
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, np.uint8),
    "e8m0": (ml_dtypes.float8_e8m0fnu, np.uint8),
}


def assert_same_floats(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal numbers, NaN in the same places, and zeros of the same sign."""
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_code_decodes_as_in_torch(name: str) -> None:
    dtype, raw = TORCH_DTYPES[name]
    codes = torch.arange(2 ** FORMATS[name].bits).to(raw)
    assert_same_floats(all_values(name).numpy(), codes.view(dtype).float().numpy())


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_decodes_as_in_ml_dtypes(name: str) -> None:
    dtype, raw = ML_DTYPES[name]
    codes = np.arange(2 ** FORMATS[name].bits).astype(raw)
    assert_same_floats(all_values(name).numpy(), codes.view(dtype).astype(np.float32))


def test_fp32_decodes_as_in_torch_in_every_exponent() -> None:
    mantissas = torch.tensor([0, 1, 2, 0x400000, 0x5A5A5A, 0x7FFFFE, 0x7FFFFF])
    codes = (torch.arange(512)[:, None] << 23 | mantissas).flatten()
    expected = codes.to(torch.int32).view(torch.float32)
    assert_same_floats(decode(codes, "fp32").numpy(), expected.numpy())


@pytest.mark.parametrize(("name", "dtype"), [("int2", ml_dtypes.int2), ("int4", ml_dtypes.int4)])
def test_every_small_integer_decodes_as_in_ml_dtypes(name: str, dtype: type) -> None:
    codes = np.arange(2 ** INTEGERS[name].bits).astype(np.uint8)
    np.testing.assert_array_equal(all_values(name).numpy(), codes.view(dtype).astype(np.float32))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_integer_is_twos_complement(bits: int) -> None:
    unused = 8 - bits
    expected = [int.from_bytes([c << unused], signed=True) >> unused for c in range(2**bits)]
    assert all_values(f"int{bits}").tolist() == expected


@pytest.mark.parametrize(("name", "theirs"), [("nf4", "nf4"), ("fp4_bnb", "fp4")])
def test_codebooks_equal_bitsandbytes_bit_for_bit(name: str, theirs: str) -> None:
    expected = bitsandbytes.functional.get_4bit_type(theirs, device="cpu")
    assert_same_floats(all_values(name).numpy(), expected.numpy())
    assert CODEBOOKS[name].bits == 4


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"])
def test_limits_equal_torch_finfo(name: str) -> None:
    ours, theirs = (
        FORMATS[name],
        torch.finfo({"fp32": torch.float32}.get(name) or TORCH_DTYPES[name][0]),
    )
    assert (ours.bits, ours.max, ours.min) == (theirs.bits, theirs.max, theirs.min)
    assert (ours.eps, ours.min_normal) == (theirs.eps, theirs.smallest_normal)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_limits_equal_ml_dtypes_finfo(name: str) -> None:
    ours, theirs = FORMATS[name], ml_dtypes.finfo(ML_DTYPES[name][0])
    assert (ours.bits, ours.max, ours.min) == (theirs.bits, float(theirs.max), float(theirs.min))
    assert ours.min_normal == float(theirs.smallest_normal)
    assert ours.min_subnormal == float(theirs.smallest_subnormal)
    assert (ours.exponent_bits, ours.mantissa_bits) == (theirs.nexp, theirs.nmant)


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "fp32"])
def test_limits_are_what_the_codes_say(name: str) -> None:
    fmt, values = FORMATS[name], all_values(name).double()
    finite = values[values.isfinite()]
    assert (finite.max().item(), finite.min().item()) == (fmt.max, fmt.min)
    assert finite[finite > 0].min().item() == fmt.min_subnormal
    assert values.isinf().any().item() == fmt.has_inf
    assert values.isnan().any().item() == fmt.has_nan
    assert (finite[finite > 1].min() - 1).item() == fmt.eps


@pytest.mark.parametrize("name", [n for n in [*FORMATS, *INTEGERS, *CODEBOOKS] if n != "fp32"])
def test_encode_is_the_inverse_of_decode(name: str) -> None:
    values = all_values(name)
    codes = torch.arange(len(values))
    unique = ~values.isnan()
    if name == "fp4_bnb":
        unique[8] = False  # a second code for zero
    assert torch.equal(encode(values[unique], name).long(), codes[unique])


def test_other_layouts_decode_too() -> None:
    e3m2 = FloatFormat("fp6_e3m2", exponent_bits=3, mantissa_bits=2, specials="none")
    expected = np.arange(64).astype(np.uint8).view(ml_dtypes.float6_e3m2fn).astype(np.float32)
    assert_same_floats(all_values(e3m2).numpy(), expected)


@pytest.mark.parametrize("bad", [[-1], [16], [3, 300]])
def test_codes_out_of_range_are_refused(bad: list[int]) -> None:
    with pytest.raises(PackingError, match=r"fp4_e2m1.*0 to 15"):
        decode(torch.tensor(bad), "fp4_e2m1")


def test_codes_that_are_no_integers_are_refused() -> None:
    with pytest.raises(PackingError, match="integers"):
        decode(torch.tensor([1.0]), "int4")


def test_unknown_format_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(SchemeError, match=r"fp7.*fp16.*int4.*nf4"):
        decode(1, "fp7")


def test_layouts_that_cannot_exist_are_refused() -> None:
    with pytest.raises(SchemeError, match="exponent bits"):
        FloatFormat("wide", exponent_bits=11, mantissa_bits=52)
    with pytest.raises(SchemeError, match="infinity and NaN"):
        FloatFormat("e3m0", exponent_bits=3, mantissa_bits=0)
    with pytest.raises(SchemeError, match="beyond float32"):
        FloatFormat("e8m3_finite", exponent_bits=8, mantissa_bits=3, specials="none")
    with pytest.raises(SchemeError, match="too many"):
        all_values("fp32")
