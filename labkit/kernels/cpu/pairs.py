"""Products of bfloat16 pairs: two columns of sixteen rows at a time, summed in float32.

    VPERMW       32 look-ups in a table of 32 numbers of 16 bits: two codes of each row become
                 bfloat16 weights
    VDPBF16PS    total + first * first + second * second, for each of sixteen lanes

Products of two bfloat16, eight bits by eight, are exact in float32.

Call these only if `HAS_PAIRS`; there is nothing to gain from them elsewhere.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba.extending import intrinsic

from labkit.quantize.lanes import FLOATS, INTS, LANES
from labkit.quantize.lanes_ir import FLOATS_IR, INTS_IR, call
from labkit.quantize.processor import has

HAS_PAIRS = has("avx512bf16") and has("avx512bw")


class _BFloat16(ir.HalfType):
    """llvmlite has no name for it."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_SHORTS_IR = ir.VectorType(ir.IntType(16), 2 * LANES)
# From LLVM 16 on the instruction takes bfloat16, before that words of two.
_PAIRS_IR = ir.VectorType(_BFloat16(), 2 * LANES) if llvm.llvm_version_info >= (16,) else INTS_IR


@intrinsic
def pair_dot(typing_context, total, x, y):
    """total + the products of both bfloat16 of each word; subnormal numbers count as zero."""

    def generate(context, builder, signature, arguments):
        total, *sides = arguments
        sides = [builder.bitcast(side, _PAIRS_IR) for side in sides]
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS_IR, [total, *sides])

    return FLOATS(FLOATS, INTS, INTS), generate


@intrinsic
def look_up_pairs(typing_context, table, index):
    """table[i % 32] for both halves i of each word; the table is 32 numbers of 16 bits."""

    def generate(context, builder, signature, arguments):
        sides = [builder.bitcast(side, _SHORTS_IR) for side in arguments]
        found = call(builder, "llvm.x86.avx512.permvar.hi.512", _SHORTS_IR, sides)
        return builder.bitcast(found, INTS_IR)

    return INTS(INTS, INTS), generate
