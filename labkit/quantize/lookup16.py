"""Look up sixteen 4-bit codes with one instruction, where the processor has it.

A table of 16 floats fills one AVX-512 register, and VPERMPS picks from a register by an index per
lane: sixteen look-ups without touching memory. Compilers do not find this by themselves, so the
instruction is named here in LLVM's own language. Without AVX-512, `AVAILABLE` is False and
callers take their scalar loop: the same numbers, as a look-up does not round.
"""

from __future__ import annotations

from numba.core import types
from numba.extending import intrinsic

from labkit.quantize.lanes_ir import (
    BYTES_IR,
    FLOATS_IR,
    INTS_IR,
    LANES,
    broadcast,
    call,
    constant_ints,
    pointer_into,
)
from labkit.quantize.processor import has

AVAILABLE = has("avx512f")


@intrinsic
def decode_sixteen_bytes(typing_context, codes, start, table, scale, out, position):
    """Write 32 floats: out[position + 2 i] = table[codes[start + i] >> 4] * scale, then the low 4.

    codes: uint8 array; table: float32 array of 16; out: float32 array; all contiguous. Nothing is
    checked: start + 16 and position + 32 must lie inside.
    """

    def generate(context, builder, signature, arguments):
        codes_in, first, table_in, factor, out_in, place = arguments

        def pointer(argument, value, index, vector):
            return pointer_into(context, builder, signature.args[argument], value, index, vector)

        def look_up(index):
            return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS_IR, [levels, index])

        zero = context.get_constant(types.intp, 0)
        levels = builder.load(pointer(2, table_in, zero, FLOATS_IR), align=4)
        packed = builder.load(pointer(0, codes_in, first, BYTES_IR), align=1)
        wide = builder.zext(packed, INTS_IR)
        scales = broadcast(builder, factor, FLOATS_IR)
        high = builder.fmul(look_up(builder.lshr(wide, constant_ints(4))), scales)
        low = builder.fmul(look_up(builder.and_(wide, constant_ints(15))), scales)
        for half in range(2):
            lanes = [half * 8 + i + other for i in range(8) for other in (0, LANES)]
            woven = builder.shuffle_vector(high, low, constant_ints(lanes))
            offset = context.get_constant(types.intp, half * LANES)
            where = pointer(4, out_in, builder.add(place, offset), FLOATS_IR)
            builder.store(woven, where, align=4)
        return context.get_dummy_value()

    kinds = (codes, types.intp, table, types.float32, out, types.intp)
    return types.void(*kinds), generate
