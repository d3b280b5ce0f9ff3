"""Exercise 09.4: a product of bytes whose sums fit, with the one unsigned side taken off again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.int8_matmul import accumulate


def int8_product(x: torch.Tensor, w_plus: torch.Tensor) -> torch.Tensor:
    """x @ w.T in int32, from w + 128 as uint8."""
    return accumulate(x, (w_plus.to(torch.int16) - 128).to(torch.int8))


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    def drawn(tokens: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
        w = rng.integers(1, 256, (rows, columns)).astype(np.uint8)
        return torch.from_numpy(x), torch.from_numpy(w)

    # 2047 * 127 * 127 is odd and above 2^24: float32 cannot say it.
    yield torch.full((1, 2047), 127, dtype=torch.int8), torch.full((2, 2047), 255).to(torch.uint8)
    yield torch.full((2, 64), -127, dtype=torch.int8), torch.full((1, 64), 1).to(torch.uint8)
    yield drawn(16, 16, 16)
    for _ in range(8):
        yield drawn(*(int(n) for n in rng.integers(1, 8, 2)), 4 * int(rng.integers(2, 40)))


def _thirty_two_bits(trial: Trial) -> str | None:
    """sums are int32, as the instruction leaves them"""
    return None if trial.got.dtype == torch.int32 else f"they are {trial.got.dtype}"


INT8 = Exercise(
    id="09.4",
    title="Products of bytes that do not overflow",
    minutes=12,
    difficulty=3,
    goal="sum 8-bit products exactly, though one side had to be made unsigned",
    stub='''
    def int8_product(x, w_plus):
        """int32 [tokens, out]: x @ w.T; x int8 [tokens, in]; w_plus uint8 [out, in] is w + 128."""
        ...
    ''',
    solution='''
    def int8_product(x, w_plus):
        """int32 [tokens, out]: x @ w.T; x int8 [tokens, in]; w_plus uint8 [out, in] is w + 128."""
        a, b = x.to(torch.int32), w_plus.to(torch.int32)
        too_much = 128 * a.sum(dim=1, keepdim=True)
        return (a @ b.T - too_much).to(torch.int32)
    ''',
    reference=int8_product,
    answer_key=accumulate,
    generate=_cases,
    bounds=(_thirty_two_bits, matches_reference(rtol=0)),
    forbid=(torch._int_mm,),
    mutants=(
        Mutant(
            "Your sums are 16 bits wide. 255 * 127 is 32385: the second product already leaves "
            "int16, and wraps around.",
            swap=("x.to(torch.int32), w_plus.to(torch.int32)",
                  "x.to(torch.int16), w_plus.to(torch.int16)"),
        ),
        Mutant(
            "Your sums are 8 bits wide: the product of two int8 tensors is an int8 tensor, modulo "
            "256. Widen before you multiply.",
            source="""
            def int8_product(x, w_plus):
                w = (w_plus.to(torch.int16) - 128).to(torch.int8)
                return (x @ w.T).to(torch.int32)
            """,
        ),
        Mutant(
            "You did not take off what the 128 added. Every weight is 128 too large, so the sum is "
            "128 times the sum of x too large.",
            swap=("a @ b.T - too_much", "a @ b.T"),
        ),
        Mutant(
            "You took off 128 times the sum of the weights. What was added to the weights is "
            "multiplied by x: 128 times the sum of x, one number a token.",
            swap=("too_much = 128 * a.sum(dim=1, keepdim=True)", "too_much = 128 * b.sum(dim=1)"),
        ),
        Mutant(
            "You added the correction. The weights are too large, so it has to come off.",
            swap=("a @ b.T - too_much", "a @ b.T + too_much"),
        ),
        Mutant(
            "You took off 128 for each column. That is right only where x is 1 everywhere.",
            swap=("128 * a.sum(dim=1, keepdim=True)", "128 * a.shape[1]"),
        ),
        Mutant(
            "You read the unsigned bytes as signed. A weight above -1 then becomes another one, "
            "256 smaller.",
            swap=("w_plus.to(torch.int32)", "w_plus.view(torch.int8).to(torch.int32)"),
        ),
        Mutant(
            "You summed in float32. It has 24 bits; beyond 16.8 million it cannot say odd numbers, "
            "and a sum of bytes gets there after a thousand columns.",
            source="""
            def int8_product(x, w_plus):
                return (x.float() @ (w_plus.float() - 128).T).to(torch.int32)
            """,
        ),
        Mutant(
            "Your pairs saturate at 32767, as in VPMADDUBSW, the older instruction. Its users "
            "keep weights to 7 bits for that reason; VPDPBUSD sums in 32 bits.",
            source="""
            def int8_product(x, w_plus):
                a, b = x.to(torch.int32), w_plus.to(torch.int32)
                if a.shape[1] % 2:
                    a, b = F.pad(a, (0, 1)), F.pad(b, (0, 1))
                products = a[:, None, :] * b[None, :, :]
                pairs = products.reshape(*products.shape[:2], -1, 2).sum(dim=3)
                pairs = pairs.clamp(-32768, 32767)
                return (pairs.sum(dim=2) - 128 * a.sum(dim=1, keepdim=True)).to(torch.int32)
            """,
        ),
    ),
    hints=(
        "x · (w + 128) = x · w + 128 · (sum of x). Which sums do you need, in which type?",
        "Convert both sides to int32 before you multiply.",
        "a @ b.T - 128 * a.sum(dim=1, keepdim=True), and back to int32: torch sums into int64.",
    ),
)  # fmt: skip
