"""Exercise 01.2: from a number to the bits of the nearest float."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from labkit.core.dtypes import decode, encode
from labkit.core.float_codec import encode_float
from labkit.course.bounds import matches_reference
from labkit.course.chapters.exercises_01_layouts import (
    BF16,
    E4M3,
    E5M2,
    FP4,
    FP16,
    float_format,
    random_layout,
)
from labkit.course.exercise import Exercise, Mutant, Trial

# Zeros, ties (0.25 of FP4, 1.0625 of E4M3), carries (1.97), the last step before overflow (65519).
_NAMED = {
    E4M3: (0.0, -0.0, 1.0, 1.0625, 1.1875, -1.97, 448.0, 500.0, -1e6, math.inf),
    # The same at the lower end: E4M3 counts in steps of 2**-9 = 0.00195 below 0.0156.
    (4, 3, "none"): (0.001, 2.0**-10, 3 * 2.0**-10, 0.0154, 480.0, 1e4),
    E5M2: (57344.0, 60000.0, 61440.0, -math.inf),
    FP4: (0.25, 0.75, -1.3, 2.5, 5.0, 7.0),
    FP16: (1e-8, 65504.0, 65519.0, 65520.0, 2049.0, 2051.0, -3e-6),
    BF16: (1 + 2.0**-8, 3.14159),
}


def _reference(x: float, exponent_bits: int, mantissa_bits: int, specials: str) -> int:
    return encode(float(x), float_format(exponent_bits, mantissa_bits, specials))


def _cases(rng: np.random.Generator) -> Iterator[tuple[float, int, int, str]]:
    for layout, numbers in _NAMED.items():
        for x in numbers:
            yield x, *layout
    for _ in range(10):
        yield float(rng.standard_normal() * 2.0 ** rng.integers(-4, 4)), *random_layout(rng)


def _is_a_code(trial: Trial) -> str | None:
    """a code has 1 + exponent_bits + mantissa_bits bits"""
    bits = 1 + trial["exponent_bits"] + trial["mantissa_bits"]
    return None if 0 <= trial.got < 2**bits else f"{trial.got} does not fit in {bits} bits"


def _is_nearest(trial: Trial) -> str | None:
    """no other number of the format may be nearer to x"""
    fmt = float_format(trial["exponent_bits"], trial["mantissa_bits"], trial["specials"])
    chosen, nearest = decode(int(trial.got), fmt), decode(int(trial.expected), fmt)
    if not (math.isfinite(chosen) and math.isfinite(nearest) and math.isfinite(trial["x"])):
        return None
    if abs(chosen - trial["x"]) <= abs(nearest - trial["x"]):
        return None
    return f"code {trial.got} stands for {chosen:.6g}, but {nearest:.6g} is nearer"


def _ties_go_to_even(trial: Trial) -> str | None:
    """halfway between two numbers, the one whose code is even wins"""
    fmt = float_format(trial["exponent_bits"], trial["mantissa_bits"], trial["specials"])
    chosen, other = decode(int(trial.got), fmt), decode(int(trial.expected), fmt)
    if chosen != other and abs(chosen - trial["x"]) == abs(other - trial["x"]) < math.inf:
        return f"{trial['x']:g} lies halfway between {chosen:g} and {other:g}; you took {chosen:g}"
    return None


ENCODE = Exercise(
    id="01.2",
    title="Encode: round to nearest, ties to even",
    minutes=15,
    difficulty=3,
    goal="find the bits of the float that is nearest to a number",
    stub='''
    def encode_float(x, exponent_bits, mantissa_bits, specials):
        """Code (an int) of the number nearest to x; a tie goes to the even code.

        x: a float, -0.0 and infinity among them, never NaN. `specials` as in decode_float.
        What rounds to more than the largest number becomes infinity where there is one
        ("ieee"), else the largest number.
        """
        ...
    ''',
    solution='''
    def encode_float(x, exponent_bits, mantissa_bits, specials):
        """Code (an int) of the number nearest to x; a tie goes to the even code.

        x: a float, -0.0 and infinity among them, never NaN. `specials` as in decode_float.
        What rounds to more than the largest number becomes infinity where there is one
        ("ieee"), else the largest number.
        """
        all_ones = 2 ** (exponent_bits + mantissa_bits) - 1
        largest = all_ones - {"ieee": 2**mantissa_bits, "nan_only": 1, "none": 0}[specials]
        overflow = largest + 1 if specials == "ieee" else largest
        sign = (math.copysign(1, x) < 0) << (exponent_bits + mantissa_bits)
        if x == 0 or math.isinf(x):
            return sign | (overflow if x else 0)
        lowest = 2 - 2 ** (exponent_bits - 1)  # exponent of the smallest normal number
        exponent = max(math.frexp(x)[1] - 1, lowest)
        steps = round(abs(x) / 2.0 ** (exponent - mantissa_bits))
        code = ((exponent - lowest) << mantissa_bits) + steps
        if code > largest:
            code = overflow
        return sign | code
    ''',
    reference=_reference,
    answer_key=encode_float,
    generate=_cases,
    bounds=(_is_a_code, _is_nearest, _ties_go_to_even, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You truncate. That is off by up to a whole step, always towards zero; rounding to "
            "nearest is off by half a step at most, and to either side.",
            swap=("round(", "math.floor("),
        ),
        Mutant(
            "You round halves up. Ties go to the even code, or sums of rounded numbers drift: "
            "floor(x + 0.5) never rounds a tie down.",
            swap=(
                "round(abs(x) / 2.0 ** (exponent - mantissa_bits))",
                "math.floor(abs(x) / 2.0 ** (exponent - mantissa_bits) + 0.5)",
            ),
        ),
        Mutant(
            "You clamp a mantissa that rounds up to 2. It must carry into the exponent: 1.97 in "
            "E4M3 is 2, not 1.875.",
            swap=(
                "round(abs(x) / 2.0 ** (exponent - mantissa_bits))",
                "min(round(abs(x) / 2.0 ** (exponent - mantissa_bits)), 2**(mantissa_bits+1) - 1)",
            ),
        ),
        Mutant(
            "You let E4M3 overflow into its NaN. Asked to saturate, it stops at its largest "
            "number, one code earlier.",
            swap=('largest + 1 if specials == "ieee"', 'largest + 1 if specials != "none"'),
        ),
        Mutant(
            "You saturate an IEEE format. What rounds beyond its largest number is infinity, and "
            "must be: an overflow should be seen.",
            swap=('largest + 1 if specials == "ieee" else largest', "largest"),
        ),
        Mutant(
            "You test for overflow before rounding. 65519 exceeds FP16's largest number, 65504, "
            "but rounds to it; 65520 is the first number that does not.",
            swap=(
                "if code > largest:",
                'if code > largest or specials == "ieee" and '
                "abs(x) > 2.0 ** (2 - lowest) - 2.0 ** (1 - lowest - mantissa_bits):",
            ),
        ),
        Mutant(
            "You flush subnormals to zero. Below the smallest normal number the format goes on "
            "in even steps, all of the smallest size.",
            swap=("return sign | code", "return sign | (code if code >> mantissa_bits else 0)"),
        ),
        Mutant(
            "You count the implicit one twice. `steps` includes it (it is at least "
            "2**mantissa_bits), so adding it to the exponent field makes that one too large.",
            swap=("(exponent - lowest) <<", "(exponent - lowest + 1) <<"),
        ),
        Mutant(
            "You lost the sign: the first bit is 1 for a negative number.",
            swap=("(math.copysign(1, x) < 0) <<", "0 <<"),
        ),
        Mutant(
            "You lost the sign of -0.0. A float has two zeros: -0.0 < 0 is False, ask "
            "math.copysign(1, x).",
            swap=("math.copysign(1, x) < 0", "x < 0"),
        ),
    ),
    hints=(
        "Find the size of a step around x first; then count steps: round(abs(x) / step). "
        "Python's round() already sends ties to the even integer.",
        "math.frexp(x)[1] - 1 is the exponent e with 2**e <= abs(x) < 2**(e+1). It may not go "
        "below that of the smallest normal number, 2 - 2**(exponent_bits - 1). One step is "
        "2**(e - mantissa_bits).",
        "A normal x has 2**mantissa_bits steps or more: the implicit one is counted in. So "
        "((e - lowest) << mantissa_bits) + steps is the whole code: the implicit one, and a "
        "mantissa that rounds up to 2, carry into the exponent field by themselves.",
    ),
)
