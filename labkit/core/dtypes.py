"""Number formats: what each can say, and where it is silent.

| name | kind | bits | sign, exponent, mantissa | largest | too large becomes |
| --- | --- | --- | --- | --- | --- |
| fp32 | IEEE 754 float | 32 | 1, 8, 23 | 3.40e38 | infinity |
| fp16 | IEEE 754 float | 16 | 1, 5, 10 | 65504 | infinity |
| bf16 | upper half of fp32 | 16 | 1, 8, 7 | 3.39e38 | infinity |
| fp8_e4m3 | OFP8 float, no infinity | 8 | 1, 4, 3 | 448 | 448 (or NaN on request) |
| fp8_e5m2 | OFP8 float, IEEE-like | 8 | 1, 5, 2 | 57344 | infinity |
| fp4_e2m1 | OCP MX float, no specials | 4 | 1, 2, 1 | 6 | 6 |
| e8m0 | OCP MX scale, power of two | 8 | 0, 8, 0 | 2**127 | NaN |
| int2 ... int8 | two's complement integer | 2 ... 8 | | 2**(bits-1) - 1 | the largest |
| nf4, fp4_bnb | list of 16 numbers | 4 | | 1 | 1 |

A code is always the bit pattern, counted from 0. ``encode`` rounds to the nearest number (ties to
even), ``decode`` is exact, ``cast`` is both. FP4 in blocks with a shared scale (MXFP4) is in
labkit.core.microscaling.
"""

from labkit.core.codebooks import CODEBOOKS, Codebook
from labkit.core.dtypes_cast import Format, all_values, cast, decode, encode, get_format
from labkit.core.dtypes_grid import Fields, fields, neighbours, spacing
from labkit.core.float_formats import FORMATS, FloatFormat
from labkit.core.int_formats import INTEGERS, IntFormat

__all__ = [
    "CODEBOOKS",
    "FORMATS",
    "INTEGERS",
    "Codebook",
    "Fields",
    "FloatFormat",
    "Format",
    "IntFormat",
    "all_values",
    "cast",
    "decode",
    "encode",
    "fields",
    "get_format",
    "neighbours",
    "spacing",
]
