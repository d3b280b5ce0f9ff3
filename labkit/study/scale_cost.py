"""What GPTQ has to compute for a block, counted; and what that says about larger models.

Two operations (a multiplication, an addition) for each pair that a product of matrices meets. For a
block of a Llama, N calibration tokens in sequences of n, and linears of in inputs and out outputs:

    forward passes   2 N (weights in front of what is wanted), and 4 N n heads head_dim where
                     attention is run: once for each group of linears, and once for the next block
    Hessians         2 N in² for each tensor that linears read
    Cholesky         in³ / 3 for each linear
    repair           out in² for each linear: the errors of each column reach all columns behind it

What is left (rounding itself, norms, reading and writing) grows with the number of weights, and
more slowly than these. So the time of a larger block is at most

    measured time · operations of the larger / operations of the measured,

as long as the machine computes larger products no more slowly. The study holds that against a model
of half the width: `ratio` from it must predict the block that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.model_shapes import ModelShape


@dataclass(frozen=True)
class Operations:
    """Of one block, by what they are for."""

    forward: float
    hessians: float
    cholesky: float
    repair: float

    @property
    def total(self) -> float:
        return self.forward + self.hessians + self.cholesky + self.repair


def linears_of(shape: ModelShape) -> list[list[tuple[int, int]]]:
    """(out, in) of a block's linears; those of a group read one tensor, groups as they run."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, ffn = shape.hidden, shape.ffn
    return [
        [(queries, hidden), (keys, hidden), (keys, hidden)],
        [(hidden, queries)],
        [(ffn, hidden), (ffn, hidden)],
        [(hidden, ffn)],
    ]


def gptq_operations(shape: ModelShape, tokens: int, length: int) -> Operations:
    """Of GPTQ on one block, true-sequential, `tokens` in sequences of `length`."""
    groups = linears_of(shape)
    weights = [sum(out * columns for out, columns in group) for group in groups]
    attention = 4 * tokens * length * shape.heads * shape.head_dim
    # In front of group g lie all groups before it; the last pass runs the whole block. The inputs
    # of the first group are there without a product, and all others are behind attention.
    forward = sum(2 * tokens * sum(weights[:count]) + attention for count in (1, 2, 3, 4))
    # A group's inputs are taken where its first linear reads them: that is k, which runs after q,
    # and up, which runs after gate.
    forward += 2 * tokens * shape.hidden * (shape.heads * shape.head_dim + shape.ffn)
    every = [linear for group in groups for linear in group]
    return Operations(
        forward,
        sum(2 * tokens * group[0][1] ** 2 for group in groups),
        sum(columns**3 / 3 for _, columns in every),
        sum(out * columns**2 for out, columns in every),
    )


def ratio(larger: ModelShape, measured: ModelShape, tokens: int, length: int) -> float:
    """How many times the operations of a measured block a block of `larger` takes."""
    both = [gptq_operations(shape, tokens, length).total for shape in (larger, measured)]
    return both[0] / both[1]


def gptq_memory(shape: ModelShape) -> dict[str, int]:
    """Bytes that are held together while the widest linear of a block is quantized.

    The block in float32, the codes that are finished, the Hessian twice (the sum that was
    collected, the copy that is factored), and of the linear three matrices in float32: the weight,
    the sums that columns have to cancel, and one more that is rounded or compared. The
    calibration's hidden states lie in files, however many there are.
    """
    every = [linear for group in linears_of(shape) for linear in group]
    out, columns = max(every, key=lambda linear: (linear[1], linear[0]))
    weights = sum(out * columns for out, columns in every)
    return {
        "block": 4 * weights,
        "codes": weights,
        "Hessian": 2 * 4 * columns**2,
        "linear": 3 * 4 * out * columns,
    }
