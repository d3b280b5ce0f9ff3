"""What kernels need beside `labkit.quantize.lanes`: look-ups, integer dot products, sums of lanes.

Two instructions matter here, and a compiler finds neither by itself:

    VPERMPS      sixteen look-ups in a table of sixteen floats: a 4-bit code becomes a weight
    VPDPBUSD     64 products of bytes, unsigned times signed, summed by fours into 16 int32

Where the processor lacks them the same intrinsics write other vector code (AVX2 looks eight up at
a time). Integers are exact and a look-up does not round, so the results are the same bits; only
`multiply_add` may round twice where there is no fused instruction.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from labkit.quantize.lanes import FLOATS, INTS, LANES
from labkit.quantize.lanes_ir import (
    FLOAT_IR,
    FLOATS_IR,
    HALVES_IR,
    INT_IR,
    INTS_IR,
    SHORTS_IR,
    call,
    constant_ints,
)
from labkit.quantize.processor import has

_FOURS_IR = ir.VectorType(ir.IntType(8), 4 * LANES)  # four bytes in each lane

HAS_PERMUTE = has("avx512f")
HAS_SHORT_PERMUTE = has("avx2")
HAS_BYTE_DOT = has("avx512vnni")
HAS_HALF = has("f16c")

# From LLVM 22 on this instruction takes bytes.
_BYTES_IN_DOT = llvm.llvm_version_info >= (22,)


@intrinsic
def quarters(typing_context, a, b, c, d):
    """Four int32, each in four lanes of its own."""

    def generate(context, builder, signature, arguments):
        four = ir.Constant(ir.VectorType(INT_IR, 4), ir.Undefined)
        for lane, value in enumerate(arguments):
            four = builder.insert_element(four, value, INT_IR(lane))
        lanes = constant_ints([lane // 4 for lane in range(LANES)])
        return builder.shuffle_vector(four, four, lanes)

    return INTS(types.int32, types.int32, types.int32, types.int32), generate


def _two_permutes(builder, table, index):
    """Eight lanes at a time: both halves of the table are looked up, and bit 3 says which holds."""
    kind, places = ir.VectorType(FLOAT_IR, 8), ir.VectorType(INT_IR, 8)
    found = []
    low, high = _half(builder, table, 0), _half(builder, table, 8)
    for first in (0, 8):
        lanes = _half(builder, index, first)
        below = call(builder, "llvm.x86.avx2.permps", kind, [low, lanes])
        above = call(builder, "llvm.x86.avx2.permps", kind, [high, lanes])
        bit = builder.and_(lanes, ir.Constant(places, [8] * 8))
        second = builder.icmp_unsigned("!=", bit, ir.Constant(places, [0] * 8))
        found.append(builder.select(second, above, below))
    return builder.shuffle_vector(*found, constant_ints(range(LANES)))


def _half(builder, vector, first):
    lanes = ir.Constant(ir.VectorType(INT_IR, 8), list(range(first, first + 8)))
    return builder.shuffle_vector(vector, vector, lanes)


def _choices(builder, table, index):
    """By the bits of the index, the lowest first: sixteen levels, then eight, four, two, one."""
    left = [builder.shuffle_vector(table, table, constant_ints(level)) for level in range(LANES)]
    for bit in range(4):
        here = builder.and_(index, constant_ints(1 << bit))
        odd = builder.icmp_unsigned("!=", here, constant_ints(0))
        pairs = zip(left[::2], left[1::2], strict=True)
        left = [builder.select(odd, second, first) for first, second in pairs]
    return left[0]


@intrinsic
def look_up(typing_context, table, index):
    """table[index % 16] for each lane; the table is sixteen lanes itself."""

    def generate(context, builder, signature, arguments):
        if HAS_PERMUTE:
            return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS_IR, arguments)
        if HAS_SHORT_PERMUTE:
            return _two_permutes(builder, *arguments)
        return _choices(builder, *arguments)

    return FLOATS(FLOATS, INTS), generate


@intrinsic
def multiply_add(typing_context, x, y, total):
    """x * y + total, rounded once where the processor can."""

    def generate(context, builder, signature, arguments):
        return call(builder, f"llvm.fmuladd.v{LANES}f32", FLOATS_IR, arguments)

    return FLOATS(FLOATS, FLOATS, FLOATS), generate


@intrinsic
def byte_dot(typing_context, total, unsigned, signed):
    """total + the sum over each lane's four bytes of unsigned byte * signed byte, modulo 2^32."""

    def generate(context, builder, signature, arguments):
        total, left, right = arguments
        if HAS_BYTE_DOT:
            if _BYTES_IN_DOT:
                left, right = (builder.bitcast(side, _FOURS_IR) for side in (left, right))
            operands = [total, left, right]
            return call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS_IR, operands)
        for byte in range(4):
            one = builder.and_(builder.lshr(left, constant_ints(8 * byte)), constant_ints(255))
            top = builder.shl(right, constant_ints(24 - 8 * byte))
            other = builder.ashr(top, constant_ints(24))
            total = builder.add(total, builder.mul(one, other))
        return total

    return INTS(INTS, INTS, INTS), generate


@intrinsic
def halves(typing_context, below, above):
    """Lanes 0 to 7 of the first, lanes 8 to 15 of the second."""

    def generate(context, builder, signature, arguments):
        mask = [lane if lane < LANES // 2 else lane + LANES for lane in range(LANES)]
        return builder.shuffle_vector(*arguments, constant_ints(mask))

    return FLOATS(FLOATS, FLOATS), generate


@intrinsic
def multiply_ints(typing_context, x, y):
    """x * y, modulo 2^32."""

    def generate(context, builder, signature, arguments):
        return builder.mul(*arguments)

    return INTS(INTS, INTS), generate


@intrinsic
def half_lanes(typing_context, bits):
    """The float16 in the low 16 bits of each lane, as float32."""

    def generate(context, builder, signature, arguments):
        low = builder.and_(arguments[0], constant_ints(0xFFFF))
        if HAS_HALF:
            shorts = builder.trunc(low, SHORTS_IR)
            return builder.fpext(builder.bitcast(shorts, HALVES_IR), FLOATS_IR)
        # The product moves the exponent, and makes a normal number of a subnormal one; what stands
        # for infinity and NaN has to stay the largest exponent.
        rest = builder.and_(low, constant_ints(0x7FFF))
        moved = builder.bitcast(builder.shl(rest, constant_ints(13)), FLOATS_IR)
        up = ir.Constant(FLOATS_IR, [2.0**112] * LANES)
        value = builder.bitcast(builder.fmul(moved, up), INTS_IR)
        special = builder.icmp_signed(">=", rest, constant_ints(0x7C00))
        top = builder.or_(value, constant_ints(0x7F800000))
        value = builder.select(special, top, value)
        sign = builder.shl(builder.and_(low, constant_ints(0x8000)), constant_ints(16))
        return builder.bitcast(builder.or_(value, sign), FLOATS_IR)

    return FLOATS(INTS), generate


@intrinsic
def as_floats(typing_context, bits):
    """The float32 that have these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], FLOATS_IR)

    return FLOATS(INTS), generate


def _fold(builder, vector, add):
    """Lane l + 8 to lane l, then 4, 2, 1: the same order everywhere."""
    width = LANES // 2
    while width:
        places = constant_ints([(lane + width) % LANES for lane in range(LANES)])
        vector = add(vector, builder.shuffle_vector(vector, vector, places))
        width //= 2
    return builder.extract_element(vector, INT_IR(0))


@intrinsic
def total(typing_context, value):
    """The sum of sixteen float32 lanes."""

    def generate(context, builder, signature, arguments):
        return _fold(builder, arguments[0], builder.fadd)

    return types.float32(FLOATS), generate


@intrinsic
def largest(typing_context, value):
    """The largest of sixteen float32 lanes, none of them NaN."""

    def generate(context, builder, signature, arguments):
        def larger(one, other):
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        return _fold(builder, arguments[0], larger)

    return types.float32(FLOATS), generate


@intrinsic
def total_ints(typing_context, value):
    """The sum of sixteen int32 lanes, modulo 2^32."""

    def generate(context, builder, signature, arguments):
        return _fold(builder, arguments[0], builder.add)

    return types.int32(INTS), generate
