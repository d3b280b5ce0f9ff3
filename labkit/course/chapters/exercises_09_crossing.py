"""Exercise 09.5: from which batch on 4 bits are no faster."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.evaluate.roofline import Roof, crossing_tokens


def crossing_batch(
    bandwidth: float, peak: float, bits: float, wide_bits: float, unpack: float
) -> int:
    """The least number of tokens with which the narrow weight is not faster."""
    return max(1, math.ceil(crossing_tokens(Roof(bandwidth, peak), bits, wide_bits, unpack)))


Case = tuple[float, float, float, float, float]


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    yield 20e9, 150e9, 4.125, 32, 0.11e-9  # two cores of a server, float32
    yield 2.0e12, 312e12, 4.125, 16, 0.3e-12  # a GPU, float16
    yield 20e9, 150e9, 4.125, 16, 0.2e-9  # unpacking takes longer than reading 16 bits
    yield 100e9, 1e12, 8, 16, 1e-12
    for _ in range(8):
        bandwidth = float(10 ** rng.uniform(10, 12.4))
        peak = bandwidth * float(rng.uniform(8, 150))
        wide = float(rng.choice([16, 32]))
        unpack = wide / 8 / bandwidth * float(rng.uniform(0.1, 0.8))
        yield bandwidth, peak, float(rng.choice([4.125, 4.5, 8])), wide, unpack


def _narrow_and_wide(trial: Trial, tokens: int) -> tuple[float, float]:
    names = ("bandwidth", "peak", "bits", "wide_bits", "unpack")
    bandwidth, peak, bits, wide_bits, unpack = (trial[name] for name in names)
    products = 2 * tokens / peak
    narrow = max(bits / 8 / bandwidth, unpack + products)
    return narrow, max(wide_bits / 8 / bandwidth, products)


def _not_faster(trial: Trial) -> str | None:
    """with the answer's tokens, fewer bits are not faster"""
    narrow, wide = _narrow_and_wide(trial, trial.got)
    if trial.got < 1:
        return f"{trial.got} tokens are no batch"
    if narrow < wide * (1 - 1e-9):
        return f"with {trial.got} tokens a weight takes {narrow:.3g} s, the wide one {wide:.3g} s"
    return None


def _faster_before(trial: Trial) -> str | None:
    """with one token less, they are"""
    if trial.got > 1:
        narrow, wide = _narrow_and_wide(trial, trial.got - 1)
        if narrow > wide * (1 + 1e-9):
            return f"with {trial.got - 1} tokens they are slower already"
    return None


CROSSING = Exercise(
    id="09.5",
    title="Where 4 bits stop paying",
    minutes=12,
    difficulty=3,
    goal="predict the batch size from which 4-bit weights are no faster",
    stub='''
    def crossing_batch(bandwidth, peak, bits, wide_bits, unpack):
        """The least whole number of tokens with which the weight of `bits` is not faster.

        bandwidth in bytes/s, peak in operations/s, unpack in seconds a weight and pass.
        """
        ...
    ''',
    solution='''
    def crossing_batch(bandwidth, peak, bits, wide_bits, unpack):
        """The least whole number of tokens with which the weight of `bits` is not faster.

        bandwidth in bytes/s, peak in operations/s, unpack in seconds a weight and pass.
        """
        wait = wide_bits / 8 / bandwidth
        tokens = (wait - unpack) * peak / 2
        return max(1, math.ceil(tokens))
    ''',
    reference=crossing_batch,
    answer_key=crossing_tokens,
    generate=_cases,
    bounds=(_not_faster, _faster_before, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You forgot the unpacking. Where the wide weight stops waiting for memory, the narrow "
            "one has long been slower: it unpacks on top of the same arithmetic.",
            swap=("(wait - unpack) * peak / 2", "wait * peak / 2"),
        ),
        Mutant(
            "You asked when the narrow weight stops waiting for memory. It is still faster then: "
            "the wide one waits for four times as many bytes.",
            swap=("wide_bits / 8 / bandwidth", "bits / 8 / bandwidth"),
        ),
        Mutant(
            "You counted bits as bytes: the wait is eight times too long.",
            swap=("wide_bits / 8 / bandwidth", "wide_bits / bandwidth"),
        ),
        Mutant(
            "You counted one operation for a weight and token. It is a multiplication and an "
            "addition.",
            swap=("* peak / 2", "* peak"),
        ),
        Mutant(
            "You unpacked the weight for every token. Unpacked once, it serves all tokens of the "
            "pass; that is why batches hide the cost on a GPU.",
            swap=("(wait - unpack) * peak / 2", "wait / (unpack + 2 / peak)"),
        ),
        Mutant(
            "You rounded down. With that many tokens 4 bits are still a little faster.",
            swap=("math.ceil(tokens)", "math.floor(tokens)"),
        ),
        Mutant(
            "You answered 0 tokens or fewer. Where unpacking takes longer than the wide weight's "
            "bytes, 4 bits lose from the first token on: 1.",
            swap=("max(1, math.ceil(tokens))", "math.ceil(tokens)"),
        ),
    ),
    hints=(
        "Per weight: wide takes max(bytes / bandwidth, 2 n / peak). Narrow takes max(its bytes / "
        "bandwidth, unpack + 2 n / peak). When are they equal?",
        "At the crossing the wide weight still waits for memory, and the narrow one computes.",
        "Solve unpack + 2 n / peak = wide_bits / 8 / bandwidth for n, round up, at least 1.",
    ),
)
