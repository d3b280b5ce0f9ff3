"""Encode, decode and cast arrays in any format: the front of the codecs.

What comes in decides what goes out: a torch tensor gives a tensor on the same device, a NumPy
array gives an array, a Python number gives a Python number. Nothing here is differentiable.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.core.codebooks import CODEBOOKS, Codebook, decode_codebook, encode_codebook
from labkit.core.dtypes_arrays import Array, in_chunks, like_input, to_tensor
from labkit.core.errors import NonFiniteError, PackingError, SchemeError
from labkit.core.float_codec import decode_float, encode_float
from labkit.core.float_formats import FORMATS, FloatFormat, Overflow
from labkit.core.int_formats import INTEGERS, IntFormat, decode_int, encode_int

Format = FloatFormat | IntFormat | Codebook


def get_format(fmt: str | Format) -> Format:
    """The format of that name ("fp16", "int4", "nf4", ...); a format is returned as it is.

    Raises SchemeError for an unknown name, with the names that exist.
    """
    if not isinstance(fmt, str):
        return fmt
    known: dict[str, Format] = {**FORMATS, **INTEGERS, **CODEBOOKS}
    if fmt not in known:
        raise SchemeError(f"unknown number format {fmt!r}", "", f"Choose from {', '.join(known)}.")
    return known[fmt]


@overload
def encode(x: torch.Tensor, fmt: str | Format, overflow: Overflow | None = ...) -> torch.Tensor: ...
@overload
def encode(x: NDArray[Any], fmt: str | Format, overflow: Overflow | None = ...) -> NDArray[Any]: ...
@overload
def encode(x: float, fmt: str | Format, overflow: Overflow | None = ...) -> int: ...
def encode(x: Array, fmt: str | Format, overflow: Overflow | None = None) -> Any:
    """Codes of the representable numbers nearest to x, ties to even.

    x: real numbers of any shape. Returns codes of the same shape, as bit patterns from 0: uint8 up
    to 8 bits, int32 for 16, int64 for 32.
    overflow: "inf", "nan" or "saturate"; by default IEEE formats (fp32, fp16, bf16, fp8_e5m2) go to
    infinity, e8m0 to NaN, and all others saturate.

    Raises NonFiniteError for a NaN where the format has none, SchemeError for an overflow
    behaviour that the format has no code for, TypeError for what is not an array of real numbers.
    """
    fmt = get_format(fmt)
    tensor = to_tensor(x)
    _check_overflow(fmt, overflow)
    _reject_nan(tensor, fmt)
    codes = in_chunks(lambda part: _encode(part.double(), fmt, overflow), tensor, _code_dtype(fmt))
    return like_input(codes, x)


@overload
def decode(codes: torch.Tensor, fmt: str | Format) -> torch.Tensor: ...
@overload
def decode(codes: NDArray[Any], fmt: str | Format) -> NDArray[np.float32]: ...
@overload
def decode(codes: int, fmt: str | Format) -> float: ...
def decode(codes: Array, fmt: str | Format) -> Any:
    """The numbers that codes stand for, as float32, which holds every one of them exactly.

    codes: integers of any shape, 0 to ``2**bits - 1``. Raises PackingError outside that range.
    """
    fmt = get_format(fmt)
    tensor = to_tensor(codes)
    _check_codes(tensor, fmt)
    values = in_chunks(lambda part: _decode(part.long(), fmt), tensor, torch.float32)
    return like_input(values, codes)


@overload
def cast(x: torch.Tensor, fmt: str | Format, overflow: Overflow | None = ...) -> torch.Tensor: ...
@overload
def cast(
    x: NDArray[Any], fmt: str | Format, overflow: Overflow | None = ...
) -> NDArray[np.float32]: ...
@overload
def cast(x: float, fmt: str | Format, overflow: Overflow | None = ...) -> float: ...
def cast(x: Array, fmt: str | Format, overflow: Overflow | None = None) -> Any:
    """x as the format remembers it, in float32: ``decode(encode(x))``. See encode for the rest."""
    fmt = get_format(fmt)
    tensor = to_tensor(x)
    _check_overflow(fmt, overflow)
    _reject_nan(tensor, fmt)
    values = in_chunks(
        lambda part: _decode(_encode(part.double(), fmt, overflow), fmt), tensor, torch.float32
    )
    return like_input(values, x)


def all_values(fmt: str | Format) -> torch.Tensor:
    """Every code's number in the order of the codes, float32 ``[2**bits]``; NaN and inf included.

    Raises SchemeError above 16 bits.
    """
    fmt = get_format(fmt)
    if fmt.bits > 16:
        raise SchemeError(f"2**{fmt.bits} codes are too many", fmt.name, "Decode those you need.")
    return decode(torch.arange(2**fmt.bits), fmt)


def _encode(x: torch.Tensor, fmt: Format, overflow: Overflow | None) -> torch.Tensor:
    if isinstance(fmt, FloatFormat):
        return encode_float(x, fmt, overflow)
    return encode_int(x, fmt) if isinstance(fmt, IntFormat) else encode_codebook(x, fmt)


def _decode(codes: torch.Tensor, fmt: Format) -> torch.Tensor:
    if isinstance(fmt, FloatFormat):
        return decode_float(codes, fmt)
    return decode_int(codes, fmt) if isinstance(fmt, IntFormat) else decode_codebook(codes, fmt)


def _code_dtype(fmt: Format) -> torch.dtype:
    if fmt.bits <= 8:
        return torch.uint8
    return torch.int32 if fmt.bits <= 16 else torch.int64


def _reject_nan(x: torch.Tensor, fmt: Format) -> None:
    if fmt.has_nan or not x.is_floating_point():
        return
    positions = torch.isnan(x).nonzero()
    if len(positions):
        raise NonFiniteError(
            f"{len(positions)} NaN, the first at {positions[0].tolist()}, and no code for NaN",
            where=fmt.name,
            remedy="Find what produced them.",
        )


def _check_overflow(fmt: Format, overflow: Overflow | None) -> None:
    if isinstance(fmt, FloatFormat):
        fmt.resolve_overflow(overflow)
    elif overflow not in (None, "saturate"):
        raise SchemeError(
            f"no code to answer an overflow with {overflow!r}",
            fmt.name,
            "It saturates.",
        )


def _check_codes(codes: torch.Tensor, fmt: Format) -> None:
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise PackingError(f"codes are integers, not {codes.dtype}", where=fmt.name)
    if codes.numel() == 0:
        return
    # As Python numbers: 256 compared with a uint8 tensor would wrap around to 0.
    lowest, highest = int(codes.min()), int(codes.max())
    if lowest < 0 or highest >= 2**fmt.bits:
        raise PackingError(
            f"codes from {lowest} to {highest}, but {fmt.bits} bits hold 0 to {2**fmt.bits - 1}",
            where=fmt.name,
        )
