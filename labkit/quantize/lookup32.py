"""Look sixteen numbers up in a table of 32 with one instruction, where the processor has it.

Two AVX-512 registers hold the table, and VPERMI2PS picks from both by an index per lane; see
`labkit.quantize.lookup16`. Only the low 5 bits of an index count.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from labkit.quantize.lanes import FLOATS, INTS, LANES

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INDEX = ir.VectorType(ir.IntType(32), LANES)


@intrinsic
def look_up(typing_context, tables, start, index):
    """tables[start + index % 32] for each lane of ``index``; nothing is checked.

    tables: float32 array, contiguous. Call it only if `labkit.quantize.lookup16.AVAILABLE`.
    """

    def generate(context, builder, signature, arguments):
        array, first, lanes = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        halves = []
        for half in range(2):
            offset = context.get_constant(types.intp, half * LANES)
            place = builder.gep(data, [builder.add(first, offset)])
            place = builder.bitcast(place, _VECTOR.as_pointer())
            halves.append(builder.load(place, align=4))
        permute = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_VECTOR, [_VECTOR, _INDEX, _VECTOR]),
            "llvm.x86.avx512.vpermi2var.ps.512",
        )
        return builder.call(permute, [halves[0], lanes, halves[1]])

    return FLOATS(tables, types.intp, INTS), generate
