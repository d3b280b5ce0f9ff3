"""Reading memory into lanes: words, bytes, halves, from any address. Nothing is checked here.

`labkit.quantize.lanes` loads floats and bytes; these load what packed weights are made of.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from labkit.quantize.lanes import INTS
from labkit.quantize.lanes_ir import (
    BYTES_IR,
    FLOAT_IR,
    INT_IR,
    INTS_IR,
    SHORTS_IR,
    broadcast,
    pointer_into,
)


@intrinsic
def load_words(typing_context, array, start):
    """64 bytes from array[start] on, uint8 or int8, as sixteen int32"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, INTS_IR)
        return builder.load(place, align=1)

    return INTS(array, types.intp), generate


@intrinsic
def load_ints(typing_context, array, start):
    """array[start : start + 16] of a contiguous int32 array"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, INTS_IR)
        return builder.load(place, align=4)

    return INTS(array, types.intp), generate


@intrinsic
def store_ints(typing_context, array, start, value):
    """array[start : start + 16] = value, for a contiguous int32 array"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments[:2], INTS_IR)
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, INTS), generate


@intrinsic
def load_signed_bytes(typing_context, array, start):
    """array[start : start + 16] of int8 (or uint8 read as int8), as int32"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, BYTES_IR)
        return builder.sext(builder.load(place, align=1), INTS_IR)

    return INTS(array, types.intp), generate


@intrinsic
def load_halves(typing_context, array, start):
    """array[start : start + 16] of a contiguous uint16 array, as int32"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, SHORTS_IR)
        return builder.zext(builder.load(place, align=2), INTS_IR)

    return INTS(array, types.intp), generate


@intrinsic
def splat_word(typing_context, array, start):
    """Four bytes from array[start] on, sixteen times, as int32 lanes"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, INT_IR)
        return broadcast(builder, builder.load(place, align=1), INTS_IR)

    return INTS(array, types.intp), generate


@intrinsic
def load_word(typing_context, array, start):
    """Four bytes from array[start] on, as one int32"""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, INT_IR)
        return builder.load(place, align=1)

    return types.int32(array, types.intp), generate


@intrinsic
def half_bits(typing_context, array, start):
    """The float16 whose bytes are array[start] and array[start + 1], as float32.

    Call it only if `labkit.kernels.cpu.vectors.HAS_HALF`.
    """

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, ir.IntType(16))
        half = builder.bitcast(builder.load(place, align=1), ir.HalfType())
        return builder.fpext(half, FLOAT_IR)

    return types.float32(array, types.intp), generate
