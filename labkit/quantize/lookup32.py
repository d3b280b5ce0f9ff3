"""Look sixteen numbers up in a table of 32 with one instruction, where the processor has it.

Two AVX-512 registers hold the table, and VPERMI2PS picks from both by an index per lane; see
`labkit.quantize.lookup16`. Only the low 5 bits of an index count.
"""

from __future__ import annotations

from numba.core import types
from numba.extending import intrinsic

from labkit.quantize.lanes import FLOATS, INTS
from labkit.quantize.lanes_ir import FLOATS_IR, LANES, call, pointer_into


@intrinsic
def look_up(typing_context, tables, start, index):
    """tables[start + index % 32] for each lane of ``index``; nothing is checked.

    tables: float32 array, contiguous. Call it only if `labkit.quantize.lookup16.AVAILABLE`.
    """

    def generate(context, builder, signature, arguments):
        array, first, lanes = arguments
        halves = []
        for half in range(2):
            offset = context.get_constant(types.intp, half * LANES)
            begin = builder.add(first, offset)
            place = pointer_into(context, builder, signature.args[0], array, begin, FLOATS_IR)
            halves.append(builder.load(place, align=4))
        operands = [halves[0], lanes, halves[1]]
        return call(builder, "llvm.x86.avx512.vpermi2var.ps.512", FLOATS_IR, operands)

    return FLOATS(tables, types.intp, INTS), generate
