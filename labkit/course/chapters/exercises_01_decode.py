"""Exercise 01.1: from the bits of a float to the number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from labkit.core.dtypes import decode
from labkit.core.float_codec import decode_float
from labkit.course.bounds import matches_reference
from labkit.course.chapters.exercises_01_layouts import (
    BF16,
    E4M3,
    E5M2,
    FP4,
    FP16,
    FP32,
    float_format,
    random_layout,
)
from labkit.course.exercise import Exercise, Mutant, Trial

_NAMED = {
    E4M3: (0x00, 0x01, 0x07, 0x08, 0x38, 0x78, 0x7E, 0x7F, 0xB9, 0xFF),
    E5M2: (0x02, 0x3C, 0x7B, 0x7C, 0x7D, 0xFC),
    FP4: (0x1, 0x2, 0x7, 0xF),
    FP16: (0x0001, 0x3C00, 0x7BFF, 0x7C00, 0xC000),
    BF16: (0x3F80, 0xC2F7),
    FP32: (0x40490FDB,),
}


def _reference(code: int, exponent_bits: int, mantissa_bits: int, specials: str) -> float:
    return decode(code, float_format(exponent_bits, mantissa_bits, specials))


def _cases(rng: np.random.Generator) -> Iterator[tuple[int, int, int, str]]:
    for layout, codes in _NAMED.items():
        for code in codes:
            yield code, *layout
    for _ in range(10):
        layout = random_layout(rng)
        yield int(rng.integers(2 ** (1 + layout[0] + layout[1]))), *layout


def _sign_bit_mirrors(trial: Trial) -> str | None:
    """flipping the first bit flips the sign, and nothing else"""
    layout = trial["exponent_bits"], trial["mantissa_bits"], trial["specials"]
    mirrored = trial.call(trial["code"] ^ (1 << (layout[0] + layout[1])), *layout)
    if math.isnan(trial.got) and math.isnan(mirrored):
        return None
    return None if mirrored == -trial.got else f"{trial.got:g} turns into {mirrored:g}"


def _codes_are_in_order(trial: Trial) -> str | None:
    """below the sign bit, the next code stands for a larger number"""
    layout = trial["exponent_bits"], trial["mantissa_bits"], trial["specials"]
    magnitude = trial["code"] & ((1 << (layout[0] + layout[1])) - 1)
    if magnitude >= float_format(*layout).max_code:
        return None
    here, above = trial.call(magnitude, *layout), trial.call(magnitude + 1, *layout)
    if here < above:
        return None
    return f"code {magnitude} gives {here:g} and code {magnitude + 1} gives {above:g}"


DECODE = Exercise(
    id="01.1",
    title="Decode a float",
    minutes=12,
    difficulty=2,
    goal="read the number off the bits of any floating-point format",
    stub='''
    def decode_float(code, exponent_bits, mantissa_bits, specials):
        """The number that the bit pattern `code` (an int) stands for, as a Python float.

        `specials` is "ieee" (exponent all ones: infinity or NaN), "nan_only" (all bits but
        the sign are ones: NaN; no infinity) or "none" (every code is a number).
        """
        ...
    ''',
    solution='''
    def decode_float(code, exponent_bits, mantissa_bits, specials):
        """The number that the bit pattern `code` (an int) stands for, as a Python float.

        `specials` is "ieee" (exponent all ones: infinity or NaN), "nan_only" (all bits but
        the sign are ones: NaN; no infinity) or "none" (every code is a number).
        """
        bias = 2 ** (exponent_bits - 1) - 1
        sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
        exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
        mantissa = code & (2**mantissa_bits - 1)
        exponent_full = exponent == 2**exponent_bits - 1
        if exponent_full and specials == "ieee":
            return math.nan if mantissa else sign * math.inf
        if exponent_full and specials == "nan_only" and mantissa == 2**mantissa_bits - 1:
            return math.nan
        fraction = mantissa / 2**mantissa_bits
        if exponent == 0:
            return sign * fraction * 2.0 ** (1 - bias)
        return sign * (1 + fraction) * 2.0 ** (exponent - bias)
    ''',
    reference=_reference,
    answer_key=decode_float,
    generate=_cases,
    bounds=(_sign_bit_mirrors, _codes_are_in_order, matches_reference(rtol=1e-9)),
    mutants=(
        Mutant(
            "You have no subnormals. Where the exponent field is 0, the implicit leading 1 "
            "becomes a 0: that is how a float reaches zero.",
            swap=("if exponent == 0:", "if False:"),
        ),
        Mutant(
            "Your bias is one too large. It is 2**(exponent_bits - 1) - 1: 127 for 8 bits.",
            swap=("2 ** (exponent_bits - 1) - 1", "2 ** (exponent_bits - 1)"),
        ),
        Mutant(
            "You gave E4M3 an infinity. It has none: with the exponent all ones it goes on "
            "counting up to 448, and only the last code is NaN.",
            swap=('exponent_full and specials == "ieee"', 'exponent_full and specials != "none"'),
        ),
        Mutant(
            "You forgot the implicit one: a normal number is 1.mantissa, and the 1 is not stored.",
            swap=("(1 + fraction)", "fraction"),
        ),
        Mutant(
            "Your subnormals have the exponent 0 - bias. They keep that of the smallest normal "
            "numbers, 1 - bias; otherwise there is a gap between the two.",
            swap=("2.0 ** (1 - bias)", "2.0 ** (0 - bias)"),
        ),
        Mutant(
            "You ignored the sign: the first bit set means minus.",
            swap=("-1.0 if", "1.0 if"),
        ),
        Mutant(
            "You read IEEE's largest exponent as an ordinary one. It is kept for infinity "
            "(mantissa 0) and NaN: FP16 ends at 65504, not at 131008.",
            swap=('exponent_full and specials == "ieee"', "False"),
        ),
        Mutant(
            "You divided the mantissa by 2**mantissa_bits - 1. Its bits weigh 1/2, 1/4, 1/8 and "
            "so on, so the divisor is 2**mantissa_bits; 1.111... must stay below 2.",
            swap=("mantissa / 2**mantissa_bits", "mantissa / (2**mantissa_bits - 1)"),
        ),
        Mutant(
            "You put the mantissa left of the exponent. From the left: sign, exponent, mantissa.",
            swap=(
                ("(code >> mantissa_bits) & (2**exponent_bits - 1)", "code & (2**exponent_bits-1)"),
                (
                    "mantissa = code & (2**mantissa_bits - 1)",
                    "mantissa = (code >> exponent_bits) & (2**mantissa_bits - 1)",
                ),
            ),
        ),
        Mutant(
            'With "nan_only" the code of all ones is NaN, not one more number: E4M3 ends at 448.',
            swap=('specials == "nan_only" and mantissa == 2**mantissa_bits - 1', "False"),
        ),
    ),
    hints=(
        "Cut the code into three integers first: shift right, then mask with & (2**n - 1).",
        "Which exponent field means what? 0: subnormal. All ones: ask `specials`. All others: "
        "1.mantissa * 2**(field - bias), with bias = 2**(exponent_bits - 1) - 1.",
        "A subnormal is 0.mantissa * 2**(1 - bias). 0.mantissa is mantissa / 2**mantissa_bits.",
    ),
)
