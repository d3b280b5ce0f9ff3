"""Sixteen lanes from an address. Nothing is checked here.

Packed weights are passed on as addresses: for an array, compiled code would count references at
every branch of a loop, and that takes longer than the loop's arithmetic.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import HAS_HALF, as_floats
from labkit.quantize import processor
from labkit.quantize.lanes import FLOATS, INTS, bits_of, splat
from labkit.quantize.lanes_ir import (
    BYTES_IR,
    FLOAT_IR,
    FLOATS_IR,
    HALVES_IR,
    INT_IR,
    INTS_IR,
    SHORTS_IR,
    broadcast,
    call,
)

# How many bytes ahead a line is asked for. A processor drops what it is asked for while too much is
# on its way, so Zen 5 gains by asking again. Zen 4 gained by one distance, and not in loops of
# integer products.
_ZEN_4 = processor.name() == "znver4"
_FAR, _NEARER, _NEAR = np.int64(8192), np.int64(6144), np.int64(4096)
_ZEN_4_AHEAD = np.int64(2048)
_LOW, _TOP = np.int32(0x7FFF), np.int32(0x8000)
_SHIFT, _SIXTEEN, _TO_FLOAT = np.int32(13), np.int32(16), np.float32(2.0**112)


def _loaded(builder, address, kind):
    """What stands at an address, a number or lanes of the LLVM type ``kind``."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


@intrinsic
def words_at(typing_context, address):
    """64 bytes as sixteen int32."""

    def generate(context, builder, signature, arguments):
        return _loaded(builder, arguments[0], INTS_IR)

    return INTS(types.int64), generate


@intrinsic
def _ask_for(typing_context, address):
    """Have the processor fetch a cache line; one that is not there does no harm."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        read, keep, data = INT_IR(0), INT_IR(3), INT_IR(1)
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, read, keep, data])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@inlined
def ask_ahead(address):
    """Have what lies behind ``address`` fetched: memory is read once, in its order."""
    if _ZEN_4:
        _ask_for(address + _ZEN_4_AHEAD)
    else:
        _ask_for(address + _FAR)
        _ask_for(address + _NEARER)
        _ask_for(address + _NEAR)


@inlined
def next_words_at(address):
    """`words_at`, and `ask_ahead`."""
    ask_ahead(address)
    return words_at(address)


@inlined
def ask_codes_ahead(address):
    """`ask_ahead` for loops of integer products."""
    if not _ZEN_4:
        ask_ahead(address)


@inlined
def next_codes_at(address):
    """`next_words_at` for loops of integer products."""
    ask_codes_ahead(address)
    return words_at(address)


@intrinsic
def float32_at(typing_context, address):
    """Sixteen float32."""

    def generate(context, builder, signature, arguments):
        return _loaded(builder, arguments[0], FLOATS_IR)

    return FLOATS(types.int64), generate


@intrinsic
def _halves_at(typing_context, address):
    """Sixteen uint16 as int32."""

    def generate(context, builder, signature, arguments):
        return builder.zext(_loaded(builder, arguments[0], SHORTS_IR), INTS_IR)

    return INTS(types.int64), generate


@intrinsic
def _extended_at(typing_context, address):
    """Sixteen float16, converted by the processor."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(_loaded(builder, arguments[0], HALVES_IR), FLOATS_IR)

    return FLOATS(types.int64), generate


@inlined
def float16_at(address):
    """Sixteen finite float16 as float32."""
    if HAS_HALF:
        return _extended_at(address)
    half = _halves_at(address)
    # The product moves the exponent, and makes a normal number of a subnormal one.
    value = as_floats((half & splat(_LOW)) << splat(_SHIFT)) * splat(_TO_FLOAT)
    return as_floats(bits_of(value) | ((half & splat(_TOP)) << splat(_SIXTEEN)))


@inlined
def bfloat16_at(address):
    """Sixteen bfloat16 as float32."""
    return as_floats(_halves_at(address) << splat(_SIXTEEN))


@intrinsic
def address_of(typing_context, array):
    """Where a contiguous array's first number lies. Something else must keep the array alive."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


@intrinsic
def bytes_at(typing_context, address):
    """Sixteen uint8 as int32."""

    def generate(context, builder, signature, arguments):
        return builder.zext(_loaded(builder, arguments[0], BYTES_IR), INTS_IR)

    return INTS(types.int64), generate


@intrinsic
def word_at(typing_context, address):
    """Four bytes, sixteen times, as int32."""

    def generate(context, builder, signature, arguments):
        return broadcast(builder, _loaded(builder, arguments[0], INT_IR), INTS_IR)

    return INTS(types.int64), generate


@intrinsic
def number_at(typing_context, address):
    """A float32, sixteen times."""

    def generate(context, builder, signature, arguments):
        return broadcast(builder, _loaded(builder, arguments[0], FLOAT_IR), FLOATS_IR)

    return FLOATS(types.int64), generate


def _storing(lanes, kind, what):
    """Store sixteen ``lanes`` as the LLVM type ``kind``, cut off if that is narrower."""

    @intrinsic
    def storing(typing_context, address, value):
        def generate(context, builder, signature, arguments):
            address, value = arguments
            value = builder.trunc(value, kind) if kind == SHORTS_IR else value
            builder.store(value, builder.inttoptr(address, kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, lanes), generate

    storing.__doc__ = what
    return storing


store_at = _storing(FLOATS, FLOATS_IR, "Sixteen float32 to an address.")
store_words_at = _storing(INTS, INTS_IR, "Sixteen int32 to an address.")
store_shorts_at = _storing(INTS, SHORTS_IR, "The low 16 bits of sixteen int32 to an address.")
