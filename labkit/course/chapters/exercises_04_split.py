"""Exercise 04.2: LLM.int8(), the split matrix product."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize import llm_int8


def split_matmul(x: torch.Tensor, weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """x @ weight.T [tokens, out]: loud columns of x in float, the others in int8."""
    return llm_int8.linear(x, llm_int8.quantize(weight), threshold=threshold, original=weight)


def _layer(
    rng: np.random.Generator, tokens: int, columns: int, out: int, loud: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    x = rng.uniform(-4, 4, (tokens, columns)) * rng.uniform(0.3, 1.0, (tokens, 1))
    for column in loud:
        # Loud in some tokens and quiet in others, as real ones are in part.
        x[:, column] = rng.uniform(0.5, 3.0, tokens)
        x[: max(1, tokens // 2), column] = rng.uniform(40, 90) * rng.choice([-1, 1])
    weight = rng.standard_normal((out, columns)) * rng.uniform(0.5, 2.0, (out, 1))
    weight[:, 0] *= 8.0  # a loud column of the weight, which is none of x
    as_float = (torch.from_numpy(a.astype(np.float32)) for a in (x, weight))
    return (*as_float, 6.0)  # type: ignore[return-value]


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    yield _layer(rng, 6, 24, 8, (3, 17))
    yield _layer(rng, 8, 16, 8, (5,))
    yield _layer(rng, 8, 8, 8, (2, 6))
    yield _layer(rng, 12, 200, 6, (3, 17))  # sums that int8 cannot hold
    yield _layer(rng, 6, 12, 5, ())
    yield _layer(rng, 4, 5, 6, (0, 1, 2, 3, 4))  # all loud: nothing is left for int8
    for _ in range(5):
        columns = int(rng.integers(8, 40))
        loud = tuple(sorted(rng.choice(np.arange(1, columns), 2, replace=False).tolist()))
        yield _layer(rng, int(rng.integers(6, 12)), columns, int(rng.integers(6, 12)), loud)


def _error_is_small(trial: Trial) -> str | None:
    """the error is at most half a step of the quiet columns' codes, on either side"""
    x, weight = trial["x"].double(), trial["weight"].double()
    quiet = ~(x.abs() >= trial["threshold"]).any(dim=0)
    half_x = (
        x[:, quiet].abs().amax(dim=1, keepdim=True) / 254 if bool(quiet.any()) else 0.0 * x[:, :1]
    )
    half_w = weight.abs().amax(dim=1) / 254
    bound = half_x * weight[:, quiet].abs().sum(dim=1) + x[:, quiet].abs().sum(1, True) * half_w
    bound = bound + int(quiet.sum()) * half_x * half_w + 1e-4 * (x.abs() @ weight.abs().T)
    off = (trial.got.double() - x @ weight.T).abs() > bound
    if not bool(off.any()):
        return None
    token, out = (int(i) for i in off.nonzero()[0])
    exact = float((x @ weight.T)[token, out])
    return f"output [{token}, {out}] is {float(trial.got[token, out]):.5g}; exact: {exact:.5g}"


def _codes_are_right(trial: Trial) -> str | None:
    """quiet columns go through int8: a scale for each token of x and for each row of weight"""
    size = trial["x"].abs() @ trial["weight"].abs().T
    wrong = (trial.got - trial.expected).abs() > 1e-5 * size
    # A code on a tie may fall either way, and then one token or one output differs.
    return (
        f"{int(wrong.sum())} of {wrong.numel()} outputs differ from the right ones"
        if float(wrong.float().mean()) > 0.3
        else None
    )


def _counted_twice(trial: Trial) -> bool:
    """Wrong by the loud columns' product, to within the rounding of it."""
    x, weight = trial["x"], trial["weight"]
    loud = (x.abs() >= trial["threshold"]).any(dim=0)
    extra = x[:, loud] @ weight[:, loud].T
    off = (trial.got - trial.expected - extra).norm()
    return bool(extra.any()) and bool(off < 0.1 * extra.norm())


SPLIT_MATMUL = Exercise(
    id="04.2",
    title="Split the matrix product",
    minutes=15,
    difficulty=3,
    goal="multiply loud columns in float and the rest in int8",
    stub='''
    def split_matmul(x, weight, threshold):
        """x @ weight.T: columns of x with any |x| >= threshold in float, the others in int8."""
        ...
    ''',
    solution='''
    def split_matmul(x, weight, threshold):
        """x @ weight.T: columns of x with any |x| >= threshold in float, the others in int8."""
        loud = (x.abs() >= threshold).any(dim=0)
        quiet_x = x * ~loud
        x_scale = (quiet_x.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
        w_scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
        x_codes = torch.round(quiet_x / x_scale).to(torch.int32)
        w_codes = torch.round(weight / w_scale).to(torch.int32)
        sums = x_codes @ w_codes.T
        return sums * x_scale * w_scale.T + x[:, loud] @ weight[:, loud].T
    ''',
    reference=split_matmul,
    answer_key=llm_int8.linear,
    generate=_cases,
    bounds=(_error_is_small, _codes_are_right),
    mutants=(
        Mutant(
            "The loud columns are counted twice: once in int8 and once in float. Set them to zero, "
            "or leave them out, before the integer product.",
            source="""
            def split_matmul(x, weight, threshold):
                loud = (x.abs() >= threshold).any(dim=0)
                largest = (x * ~loud).abs().amax(dim=1, keepdim=True)
                x_scale = torch.where(largest > 0, largest, 127.0) / 127
                w_scale = weight.abs().amax(dim=1, keepdim=True) / 127
                x_codes = torch.round(x / x_scale).to(torch.int32)
                w_codes = torch.round(weight / w_scale).to(torch.int32)
                return x_codes @ w_codes.T * x_scale * w_scale.T + x[:, loud] @ weight[:, loud].T
            """,
            recognise=_counted_twice,
        ),
        Mutant(
            "Your scale of x still sees the loud columns, so the quiet ones get a handful of "
            "codes: the problem is back. Take them out first, then choose the scale.",
            swap=(
                "(quiet_x.abs().amax(dim=1, keepdim=True) / 127)",
                "(x.abs().amax(dim=1, keepdim=True) / 127)",
            ),
        ),
        Mutant(
            "You compared the weight with the threshold. Columns are loud in the *activations*; "
            "they are looked for in x, in every call.",
            swap=("(x.abs() >= threshold).any(dim=0)", "(weight.abs() >= threshold).any(dim=0)"),
        ),
        Mutant(
            "You took out single values, not columns. A row of the float product then needs other "
            "columns than the next: split by column, if any token is loud there.",
            source="""
            def split_matmul(x, weight, threshold):
                loud = x.abs() >= threshold
                quiet_x = torch.where(loud, 0.0, x)
                x_scale = (quiet_x.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
                w_scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
                x_codes = torch.round(quiet_x / x_scale).to(torch.int32)
                w_codes = torch.round(weight / w_scale).to(torch.int32)
                return x_codes @ w_codes.T * x_scale * w_scale.T + (x * loud) @ weight.T
            """,
        ),
        Mutant(
            "You dropped the loud columns. They are few, but they carry most of the output: "
            "multiply them in float and add the result.",
            swap=(" + x[:, loud] @ weight[:, loud].T", ""),
        ),
        Mutant(
            "One scale for all tokens: the loudest token sets the step of the quietest. Take the "
            "maximum over the columns of each row.",
            swap=("quiet_x.abs().amax(dim=1, keepdim=True)", "quiet_x.abs().amax()"),
        ),
        Mutant(
            "You multiplied the codes as int8, and the sum wrapped around. Two int8 codes make a "
            "product of 15 bits: accumulate in int32.",
            swap=(
                (
                    "torch.round(quiet_x / x_scale).to(torch.int32)",
                    "torch.round(quiet_x / x_scale).to(torch.int8)",
                ),
                (
                    "torch.round(weight / w_scale).to(torch.int32)",
                    "torch.round(weight / w_scale).to(torch.int8)",
                ),
            ),
        ),
        Mutant(
            "Nothing is quantized: this is the product in floating point. The quiet columns have "
            "to become int8 codes.",
            source="""
            def split_matmul(x, weight, threshold):
                return x @ weight.T
            """,
        ),
    ),
    hints=(
        "loud = (x.abs() >= threshold).any(dim=0) is one truth value for each column.",
        "With the loud columns of x at zero, the rest is an ordinary int8 product: a scale for "
        "each row of x, a scale for each row of weight, integers in between.",
        "Sum the codes as int32, multiply by x_scale [tokens, 1] and w_scale.T [1, out], and add "
        "x[:, loud] @ weight[:, loud].T.",
    ),
)
