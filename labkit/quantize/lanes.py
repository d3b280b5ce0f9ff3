"""Sixteen numbers as one value in compiled loops, so that sixteen blocks are worked on at a time.

A quantizer's loop over a block sums in a fixed order, one term after the other, and a compiler may
not change that. Blocks are independent, though: give each lane of a vector register a block of its
own, and the loop reads as if there were one block, every sum keeps its order, and the arithmetic is
done sixteen times at once. Sixteen float32 fill an AVX-512 register; elsewhere LLVM takes two or
four registers, with the same results.

    total = splat(ZERO)
    for position in range(32):
        x = load(columns, LANES * position)     # weight `position` of sixteen blocks
        total = total + x * x
    largest = select(total > largest, total, largest)

Numba's own vectorizer only finds such loops where it can prove that arrays do not overlap, and then
keeps sums in memory. Here a value of sixteen lanes is a type, which stays in a register.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from labkit.quantize.lanes_ir import (
    BYTES_IR,
    FLOATS_IR,
    INTS_IR,
    LANES,
    broadcast,
    call,
    pointer_into,
)


class LanesType(types.Type):
    """Numba's type of sixteen lanes of ``element``."""

    def __init__(self, element: types.Type) -> None:
        self.element = element
        super().__init__(name=f"Lanes({element})")

    @property
    def key(self):
        return self.element


FLOATS, INTS, MASK = (LanesType(e) for e in (types.float32, types.int32, types.boolean))
_IR = {
    FLOATS: FLOATS_IR,
    INTS: INTS_IR,
    MASK: ir.VectorType(ir.IntType(1), LANES),
}
_FLOAT_OPERATIONS = {
    operator.add: "fadd",
    operator.iadd: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}
_INT_OPERATIONS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.xor: "xor",
    operator.lshift: "shl",
    operator.rshift: "lshr",
}
_COMPARISONS = {operator.lt: "<", operator.gt: ">", operator.le: "<=", operator.eq: "=="}


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _IR[kind])


def _define(function, operands: LanesType, result: LanesType, generate) -> None:
    """Give ``function`` a meaning for two ``operands``; generate(builder, left, right) -> value."""

    @type_callable(function)
    def resolve(context):
        def typer(left, right):
            return result if left == right == operands else None

        return typer

    @lower_builtin(function, operands, operands)
    def lower(context, builder, signature, arguments):
        return generate(builder, *arguments)


for _function, _name in _FLOAT_OPERATIONS.items():
    _define(_function, FLOATS, FLOATS, lambda b, x, y, n=_name: getattr(b, n)(x, y))
for _function, _name in _INT_OPERATIONS.items():
    _define(_function, INTS, INTS, lambda b, x, y, n=_name: getattr(b, n)(x, y))
for _function, _name in _COMPARISONS.items():
    _define(_function, FLOATS, MASK, lambda b, x, y, n=_name: b.fcmp_ordered(n, x, y))
    _define(_function, INTS, MASK, lambda b, x, y, n=_name: b.icmp_signed(n, x, y))
_define(operator.and_, MASK, MASK, lambda b, x, y: b.and_(x, y))
_define(operator.or_, MASK, MASK, lambda b, x, y: b.or_(x, y))


@intrinsic
def splat(typing_context, scalar):
    """Sixteen times the float32 or int32 ``scalar``."""
    kind = {types.float32: FLOATS, types.int32: INTS}[scalar]

    def generate(context, builder, signature, arguments):
        return broadcast(builder, arguments[0], _IR[kind])

    return kind(scalar), generate


@intrinsic
def load(typing_context, array, start):
    """array[start : start + 16] of a contiguous float32 array; nothing is checked."""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, FLOATS_IR)
        return builder.load(place, align=4)

    return FLOATS(array, types.intp), generate


@intrinsic
def load_bytes(typing_context, array, start):
    """array[start : start + 16] of a contiguous uint8 array, as int32; nothing is checked."""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments, BYTES_IR)
        return builder.zext(builder.load(place, align=1), INTS_IR)

    return INTS(array, types.intp), generate


@intrinsic
def store(typing_context, array, start, value):
    """array[start : start + 16] = value, for a contiguous float32 array; nothing is checked."""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments[:2], FLOATS_IR)
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOATS), generate


@intrinsic
def store_bytes(typing_context, array, start, value):
    """The low 8 bits of each lane to array[start : start + 16], uint8; nothing is checked."""

    def generate(context, builder, signature, arguments):
        place = pointer_into(context, builder, signature.args[0], *arguments[:2], BYTES_IR)
        builder.store(builder.trunc(arguments[2], BYTES_IR), place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, INTS), generate


@intrinsic
def select(typing_context, mask, yes, no):
    """``yes`` where the mask is set, ``no`` elsewhere."""

    def generate(context, builder, signature, arguments):
        return builder.select(*arguments)

    return yes(MASK, yes, yes), generate


@intrinsic
def any_lane(typing_context, mask):
    """Whether the mask is set in some lane."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(MASK), generate


def _unary(name: str):
    def typed(typing_context, value):
        def generate(context, builder, signature, arguments):
            return call(builder, name, FLOATS_IR, arguments)

        return FLOATS(FLOATS), generate

    return typed


absolute = intrinsic(_unary(f"llvm.fabs.v{LANES}f32"))
square_root = intrinsic(_unary(f"llvm.sqrt.v{LANES}f32"))


@intrinsic
def to_floats(typing_context, value):
    """Integers of magnitude up to 2^24 as float32."""

    def generate(context, builder, signature, arguments):
        return builder.sitofp(arguments[0], FLOATS_IR)

    return FLOATS(INTS), generate


@intrinsic
def bits_of(typing_context, value):
    """The bits of float32 lanes, as int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], INTS_IR)

    return INTS(FLOATS), generate


@intrinsic
def negative(typing_context, value):
    """-value: the sign bit turned, zeros included."""

    def generate(context, builder, signature, arguments):
        return builder.fneg(arguments[0])

    return FLOATS(FLOATS), generate
