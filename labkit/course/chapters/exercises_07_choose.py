"""Exercise 07.7: the type for a given memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial

Types = dict[str, tuple[float, float]]

MEASURED: Types = {
    "Q8_0": (8.5, 7.01),
    "Q6_K": (6.56, 7.03),
    "Q5_K_M": (5.69, 7.05),
    "Q4_K_M": (4.85, 7.14),
    "Q4_0": (4.55, 7.38),
    "IQ4_XS": (4.32, 7.19),
    "Q3_K_M": (3.91, 7.49),
    "Q2_K": (3.16, 8.65),
}


def choose_type(types: Types, weights: int, cache_bytes: int, limit_gib: float) -> str:
    """The name of the type with the least perplexity that fits, or ValueError."""
    free = limit_gib * 2**30 - cache_bytes
    fitting = [name for name, (bits, _) in types.items() if bits * weights / 8 <= free]
    if not fitting:
        raise ValueError("no type fits")
    return min(fitting, key=lambda name: types[name][1])


def _cases(rng: np.random.Generator) -> Iterator[tuple[Types, int, int, float]]:
    eight = 8 * 10**9
    yield MEASURED, eight, 0, 4.3  # Q4_0 is the largest that fits, IQ4_XS the best
    yield MEASURED, eight, 0, 16.0
    yield MEASURED, eight, 2**30, 6.0
    yield MEASURED, eight, 2 * 2**30, 7.0
    yield MEASURED, 2**33, 0, 8.5  # Q8_0 just fits
    yield MEASURED, eight, 0, 7.92  # Q8_0 in GiB, Q6_K in units of 10**9
    yield MEASURED, eight, 0, 2.0  # nothing does
    yield MEASURED, eight, 3 * 2**30, 5.0
    for _ in range(8):
        count = int(rng.integers(1, 9)) * 10**9
        cache = int(rng.integers(0, 2**30))
        smallest = (3.2 * count / 8 + cache) / 2**30
        yield MEASURED, count, cache, float(np.round(smallest * rng.uniform(1, 3), 2) + 0.01)


def _fits(trial: Trial) -> str | None:
    """weights and cache together fit into the limit"""
    if trial.got not in trial["types"]:
        return f"{trial.got!r} is none of the types"
    need = trial["types"][trial.got][0] * trial["weights"] / 8 + trial["cache_bytes"]
    if need > trial["limit_gib"] * 2**30:
        return f"{trial.got} needs {need / 2**30:.2f} GiB of {trial['limit_gib']:.2f}"
    return None


CHOOSE = Exercise(
    id="07.7",
    title="A type for your memory",
    minutes=8,
    difficulty=2,
    goal="choose the best type that fits into a machine",
    stub='''
    def choose_type(types, weights, cache_bytes, limit_gib):
        """Of types, name -> (bits per weight, perplexity), the best that fits; or ValueError."""
        ...
    ''',
    solution='''
    def choose_type(types, weights, cache_bytes, limit_gib):
        """Of types, name -> (bits per weight, perplexity), the best that fits; or ValueError."""
        free = limit_gib * 2**30 - cache_bytes
        fitting = {n: ppl for n, (bits, ppl) in types.items() if bits * weights / 8 <= free}
        if not fitting:
            raise ValueError("no type fits")
        return min(fitting, key=fitting.get)
    ''',
    reference=choose_type,
    answer_key=choose_type,
    generate=_cases,
    bounds=(_fits, matches_reference()),
    mutants=(
        Mutant(
            "You took the largest file that fits. More bits are not always better: compare the "
            "perplexities.",
            swap=(("{n: ppl for", "{n: -bits for"),),
        ),
        Mutant(
            "You took the smallest file. All that fits is equally cheap: take the best of it.",
            swap=("{n: ppl for", "{n: bits for"),
        ),
        Mutant(
            "The cache is forgotten: it needs memory beside the weights.",
            swap=("2**30 - cache_bytes", "2**30"),
        ),
        Mutant(
            "A GiB has 2**30 bytes; 10**9 are a GB, seven per cent less.",
            swap=("2**30", "10**9"),
        ),
        Mutant(
            "Bits were taken for bytes: divide by 8.",
            swap=("bits * weights / 8", "bits * weights"),
        ),
        Mutant(
            "A file that fits exactly fits: <=, not <.",
            swap=("<= free", "< free"),
        ),
        Mutant(
            "When nothing fits you return a type that does not. Refuse: raise ValueError.",
            swap=('raise ValueError("no type fits")', "return min(types, key=types.get)"),
        ),
    ),
    hints=(
        "What is left for weights: limit_gib * 2**30 bytes, less cache_bytes.",
        "Keep the types whose bits * weights / 8 bytes are at most that.",
        "Of those the one with the least perplexity; none left: raise ValueError.",
    ),
)
