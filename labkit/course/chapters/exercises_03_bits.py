"""Exercise 03.5: what scales and zero-points cost in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.granularity import scale_shape
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial


def bits_per_weight(
    rows: int, columns: int, bits: int, granularity: str, group_size: int | None, symmetric: bool
) -> float:
    """Bits stored for each weight: codes, 16-bit scales, zero-points of `bits` bits."""
    scheme = QuantScheme(bits, symmetric, granularity, group_size)  # type: ignore[arg-type]
    scales = scale_shape((rows, columns), scheme)
    return QuantizedTensor(
        torch.zeros(rows, columns, dtype=scheme.code_dtype),
        torch.ones(scales, dtype=torch.float16),
        None if symmetric else torch.zeros(scales, dtype=torch.int32),
        scheme,
    ).bits_per_weight


def _layers(rng: np.random.Generator) -> Iterator[tuple[int, int, int, str, int | None, bool]]:
    yield 64, 128, 4, "group", 32, True
    yield 64, 128, 4, "group", 32, False
    yield 32, 128, 3, "channel", None, False
    yield 128, 32, 8, "channel", None, True
    yield 16, 16, 4, "tensor", None, True
    yield 16, 16, 2, "tensor", None, False
    for _ in range(12):
        kind = str(rng.choice(["tensor", "channel", "group"]))
        size = int(rng.choice([8, 16, 32, 64])) if kind == "group" else None
        rows, columns = int(rng.integers(2, 60)), (size or 8) * int(rng.integers(1, 5))
        yield rows, columns, int(rng.integers(2, 9)), kind, size, bool(rng.integers(2))


def _more_than_the_codes(trial: Trial) -> str | None:
    """metadata only adds to the bits of the codes"""
    if trial.got > trial["bits"]:
        return None
    return f"{float(trial.got):.4g} bits, and the codes alone take {trial['bits']}"


BITS_PER_WEIGHT = Exercise(
    id="03.5",
    title="True bits per weight",
    minutes=8,
    difficulty=2,
    goal="count what a quantized weight really takes",
    stub='''
    def bits_per_weight(rows, columns, bits, granularity, group_size, symmetric):
        """Bits stored per weight: codes, 16-bit scales, zero-points of `bits` bits."""
        ...
    ''',
    solution='''
    def bits_per_weight(rows, columns, bits, granularity, group_size, symmetric):
        """Bits stored per weight: codes, 16-bit scales, zero-points of `bits` bits."""
        count = rows * columns
        blocks = 1
        if granularity == "channel":
            blocks = rows
        if granularity == "group":
            blocks = count // group_size
        zero_point_bits = 0 if symmetric else bits
        return (count * bits + blocks * (16 + zero_point_bits)) / count
    ''',
    reference=bits_per_weight,
    answer_key=QuantizedTensor.bits_per_weight.fget,
    generate=_layers,
    bounds=(_more_than_the_codes, matches_reference(rtol=1e-6)),
    mutants=(
        Mutant(
            "You forgot the zero-points. An asymmetric block stores one beside its scale, `bits` "
            "bits wide.",
            swap=("0 if symmetric else bits", "0"),
        ),
        Mutant(
            "You counted a zero-point for symmetric blocks too. It is 0 by definition there, and "
            "not stored.",
            swap=("0 if symmetric else bits", "bits"),
        ),
        Mutant(
            "You counted one scale for the whole matrix. There is one in every block: a row, or a "
            "group.",
            swap=("blocks * (16", "1 * (16"),
        ),
        Mutant(
            "You counted bytes for the scale: float16 is 2 bytes, and here everything is in bits.",
            swap=("(16 +", "(2 +"),
        ),
        Mutant(
            "You counted 32 bits for a scale. These are stored as float16.",
            swap=("(16 +", "(32 +"),
        ),
        Mutant(
            "You gave every zero-point 16 bits, as if it were a float. It is a code: `bits` bits.",
            swap=("0 if symmetric else bits", "0 if symmetric else 16"),
        ),
        Mutant(
            "You counted one scale for each column. The output channels of [out, in] are its rows.",
            swap=("blocks = rows", "blocks = columns"),
        ),
        Mutant(
            "You counted the groups of one row. Every row has its own: rows * columns / group_size "
            "in all.",
            swap=("count // group_size", "columns // group_size"),
        ),
        Mutant(
            "You gave the bits of the whole matrix. Divide by the number of weights.",
            swap=("(16 + zero_point_bits)) / count", "(16 + zero_point_bits))"),
        ),
        Mutant(
            "You counted the metadata alone. The codes take `bits` bits each on top of it.",
            swap=("count * bits + blocks", "blocks"),
        ),
    ),
    hints=(
        "How many blocks share one scale each? One, `rows`, or rows * columns / group_size.",
        "A block stores 16 bits of scale, and `bits` bits of zero-point when asymmetric.",
        "(rows * columns * bits + blocks * (16 + zero-point bits)) / (rows * columns)",
    ),
)
