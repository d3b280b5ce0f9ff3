"""What intrinsics on sixteen lanes are written with: LLVM's types, addresses, calls, broadcasts."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

LANES = 16
FLOAT_IR, INT_IR = ir.FloatType(), ir.IntType(32)
FLOATS_IR, INTS_IR = ir.VectorType(FLOAT_IR, LANES), ir.VectorType(INT_IR, LANES)
BYTES_IR, SHORTS_IR = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 16))
HALVES_IR = ir.VectorType(ir.HalfType(), LANES)


def constant_ints(numbers: int | Sequence[int]) -> ir.Constant:
    """Sixteen int32, or one of them in all lanes."""
    every = [numbers] * LANES if isinstance(numbers, int) else list(numbers)
    return ir.Constant(INTS_IR, every)


def broadcast(builder, scalar, vector: ir.VectorType):
    """``scalar`` in each of the sixteen lanes of ``vector``."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, INT_IR(0))
    return builder.shuffle_vector(one, one, constant_ints(0))


def pointer_into(context, builder, kind, array, start, pointee):
    """Where array[start] lies, as a pointer to ``pointee``; ``kind``: Numba's type of the array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [start]), pointee.as_pointer())


def call(builder, name: str, result, arguments: Sequence):
    """The result of a function that the linker or LLVM itself knows as ``name``."""
    shape = ir.FunctionType(result, [value.type for value in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), arguments)
