"""Look up sixteen 4-bit codes with one instruction, where the processor has it.

A table of 16 floats fills one AVX-512 register, and VPERMPS picks from a register by an index per
lane: sixteen look-ups without touching memory. Compilers do not find this by themselves, so the
instruction is named here in LLVM's own language. Without AVX-512, `AVAILABLE` is False and
callers take their scalar loop: the same numbers, as a look-up does not round.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_FLOAT, _INT, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)


def _available() -> bool:
    # Someone who compiles for another processor (NUMBA_CPU_FEATURES) means that one.
    chosen = numba.config.CPU_FEATURES
    if chosen is not None:
        return "+avx512f" in chosen.split(",")
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


AVAILABLE = _available()


@intrinsic
def decode_sixteen_bytes(typing_context, codes, start, table, scale, out, position):
    """Write 32 floats: out[position + 2 i] = table[codes[start + i] >> 4] * scale, then the low 4.

    codes: uint8 array; table: float32 array of 16; out: float32 array; all contiguous. Nothing is
    checked: start + 16 and position + 32 must lie inside.
    """

    def generate(context, builder, signature, arguments):
        codes_in, first, table_in, factor, out_in, place = arguments
        vector = ir.VectorType(_FLOAT, LANES)
        numbers = ir.VectorType(_INT, LANES)

        def address(kind, value, index, element):
            data = context.make_array(kind)(context, builder, value).data
            pointer = builder.gep(data, [index])
            return builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer())

        def splat(lane):
            return ir.Constant(numbers, [lane] * LANES)

        zero = context.get_constant(types.intp, 0)
        levels = builder.load(address(signature.args[2], table_in, zero, _FLOAT), align=4)
        packed = builder.load(address(signature.args[0], codes_in, first, _BYTE), align=1)
        wide = builder.zext(packed, numbers)
        permute = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector, numbers]),
            "llvm.x86.avx512.permvar.sf.512",
        )
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), factor, _INT(0))
        scales = builder.shuffle_vector(one, one, splat(0))
        high = builder.fmul(builder.call(permute, [levels, builder.lshr(wide, splat(4))]), scales)
        low = builder.fmul(builder.call(permute, [levels, builder.and_(wide, splat(15))]), scales)
        for half in range(2):
            lanes = [half * 8 + i + other for i in range(8) for other in (0, LANES)]
            woven = builder.shuffle_vector(high, low, ir.Constant(numbers, lanes))
            offset = context.get_constant(types.intp, half * LANES)
            where = address(signature.args[4], out_in, builder.add(place, offset), _FLOAT)
            builder.store(woven, where, align=4)
        return context.get_dummy_value()

    kinds = (codes, types.intp, table, types.float32, out, types.intp)
    return types.void(*kinds), generate
