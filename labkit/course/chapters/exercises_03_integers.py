"""Exercise 03.6: what scales cost in arithmetic, and which of them leave the sum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.exercise import Exercise, Mutant, Trial


def integer_linear(
    x_codes: torch.Tensor, x_scale: torch.Tensor, w_codes: torch.Tensor, w_scale: torch.Tensor
) -> torch.Tensor:
    """y [tokens, out] = x @ w.T: integer sums within a group, scales outside of them."""
    columns, groups = w_codes.shape[1], w_scale.shape[1]
    y = torch.zeros(len(x_codes), len(w_codes), dtype=torch.float64)
    for group in range(groups):
        part = slice(group * columns // groups, (group + 1) * columns // groups)
        sums = x_codes[:, part].to(torch.int64) @ w_codes[:, part].to(torch.int64).T
        y += sums.to(torch.float64) * w_scale[:, group].to(torch.float64)
    return (y * x_scale.to(torch.float64)).to(torch.float32)


def _codes(rng: np.random.Generator, rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-127, 128, (rows, columns)).astype(np.int8))


def _scales(rng: np.random.Generator, rows: int, columns: int) -> torch.Tensor:
    by_row = rng.permutation(np.arange(1, rows + 1))[:, None]
    values = rng.uniform(0.01, 0.03, (rows, columns)) * by_row
    return torch.from_numpy(values.astype(np.float32))


def _cancelling(rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Large products whose sum is small: what a float sum rounds away, an integer sum keeps."""
    x, w = _codes(rng, 3, 400), _codes(rng, 3, 400)
    x, w = torch.cat([x, x, x[:, :1]], dim=1), torch.cat([w, -w, w[:, :1]], dim=1)
    x[:, -1], w[:, -1] = 1, torch.tensor([1, 2, 3], dtype=torch.int8)
    order = torch.from_numpy(rng.permutation(801))
    return x[:, order], _scales(rng, 3, 1), w[:, order], _scales(rng, 3, 1)


def _linears(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
    yield (
        torch.tensor([[1, 2], [3, -4]], dtype=torch.int8),
        torch.tensor([[0.5], [2.0]]),
        torch.tensor([[5, -6], [7, 100]], dtype=torch.int8),
        torch.tensor([[10.0], [0.25]]),
    )
    yield _codes(rng, 4, 8), _scales(rng, 4, 1), _codes(rng, 4, 8), _scales(rng, 4, 4)
    yield _codes(rng, 2, 6), _scales(rng, 2, 1), _codes(rng, 5, 6), _scales(rng, 5, 2)
    yield _codes(rng, 3, 4), _scales(rng, 3, 1), _codes(rng, 3, 4), _scales(rng, 3, 4)
    for _ in range(3):  # once in 200 times, one of these alone rounds to the right answer
        yield _cancelling(rng)
    for index in range(6):
        groups, tokens = int(rng.choice([1, 2, 3])), int(rng.integers(2, 6))
        columns = groups * int(rng.integers(2, 5))
        out = tokens if index % 2 else tokens + 1
        yield (
            _codes(rng, tokens, columns),
            _scales(rng, tokens, 1),
            _codes(rng, out, columns),
            _scales(rng, out, groups),
        )


def _tokens_are_independent(trial: Trial) -> str | None:
    """twice the scale of a token doubles that token's outputs alone"""
    scale = trial["x_scale"].clone()
    scale[0] *= 2
    again = trial.call(trial["x_codes"], scale, trial["w_codes"], trial["w_scale"])
    wanted = trial.got.clone()
    wanted[0] *= 2
    return None if torch.allclose(again, wanted, rtol=1e-4) else "it does not"


def _sums_are_exact(trial: Trial) -> str | None:
    """the sum runs over integers and is exact; scales come after it"""
    wrong = ~torch.isclose(trial.got.float(), trial.expected, rtol=2e-4, atol=2e-5)
    if not bool(wrong.any()):
        return None
    token, out = (int(i) for i in wrong.nonzero()[0])
    got, right = float(trial.got[token, out]), float(trial.expected[token, out])
    return f"output [{token}, {out}] is {got:.6g}, not {right:.6g}"


def _only_rounded(trial: Trial) -> bool:
    """Wrong by no more than float rounding of the products: the scales went inside the sum."""
    groups = trial["w_scale"].shape[1]
    w_scale = trial["w_scale"].repeat_interleave(trial["w_codes"].shape[1] // groups, dim=1)
    x = trial["x_codes"].float() * trial["x_scale"]
    size = x.abs() @ (trial["w_codes"].float() * w_scale).abs().T
    return trial.got.shape == trial.expected.shape and bool(
        ((trial.got - trial.expected).abs() <= 1e-5 * size).all()
    )


INTEGER_LINEAR = Exercise(
    id="03.6",
    title="Where the scale leaves the sum",
    minutes=12,
    difficulty=3,
    goal="multiply integer codes and apply each scale where it is cheapest",
    stub='''
    def integer_linear(x_codes, x_scale, w_codes, w_scale):
        """y = x @ w.T [tokens, out] from int8 codes; x_scale [tokens, 1], w_scale [out, groups]."""
        ...
    ''',
    solution='''
    def integer_linear(x_codes, x_scale, w_codes, w_scale):
        """y = x @ w.T [tokens, out] from int8 codes; x_scale [tokens, 1], w_scale [out, groups]."""
        groups = w_scale.shape[1]
        x = x_codes.to(torch.int32).reshape(len(x_codes), groups, -1)
        w = w_codes.to(torch.int32).reshape(len(w_codes), groups, -1)
        sums = torch.einsum("tgi,ogi->tog", x, w)
        return (sums * w_scale).sum(dim=2) * x_scale
    ''',
    reference=integer_linear,
    generate=_linears,
    bounds=(_tokens_are_independent, _sums_are_exact),
    mutants=(
        Mutant(
            "You multiplied the codes as int8, and the sum wrapped around: one product of two "
            "int8 codes already needs 15 bits. Accumulate in int32.",
            swap=(("x_codes.to(torch.int32)", "x_codes"), ("w_codes.to(torch.int32)", "w_codes")),
        ),
        Mutant(
            "You put the scales inside the sum: floats are multiplied and added, and small results "
            "of large terms are rounded away. Within a group the scale is constant: add the "
            "integer products first, then multiply once.",
            source="""
            def integer_linear(x_codes, x_scale, w_codes, w_scale):
                size = w_codes.shape[1] // w_scale.shape[1]
                w = w_codes.float() * w_scale.repeat_interleave(size, dim=1)
                return (x_codes.float() * x_scale) @ w.T
            """,
            recognise=_only_rounded,
        ),
        Mutant(
            "The weight's scale met the wrong axis: in y [tokens, out] a [out, 1] scale broadcasts "
            "over the tokens, silently where tokens == out. Output channels are the columns of y.",
            swap=("(sums * w_scale).sum(dim=2)", "(sums * w_scale[:, None, :]).sum(dim=2)"),
        ),
        Mutant(
            "The scale of the activations met the output channels. There is one for each token, "
            "and tokens are the rows of y: [tokens, 1] as it is.",
            swap=(".sum(dim=2) * x_scale", ".sum(dim=2) * x_scale.reshape(1, -1)"),
        ),
        Mutant(
            "You forgot the scale of the activations: both factors of the product are codes.",
            swap=(" * x_scale", ""),
        ),
        Mutant(
            "You added the groups' sums before scaling, and used an average scale. Sums of "
            "different groups count in different units: scale each, then add.",
            swap=("(sums * w_scale).sum(dim=2)", "(sums.sum(dim=2) * w_scale.mean(dim=1))"),
        ),
        Mutant(
            "You used the first group's scale for the whole row.",
            swap=("(sums * w_scale)", "(sums * w_scale[:, :1])"),
        ),
        Mutant(
            "Your groups take every n-th column. A group is a run of neighbours: the last axis "
            "splits into [groups, group_size].",
            swap=(
                (
                    "reshape(len(x_codes), groups, -1)",
                    "reshape(len(x_codes), -1, groups).transpose(1, 2)",
                ),
                (
                    "reshape(len(w_codes), groups, -1)",
                    "reshape(len(w_codes), -1, groups).transpose(1, 2)",
                ),
            ),
        ),
        Mutant(
            "The result is [out, tokens]. A row of y is a token, as a row of x is.",
            swap=(
                "(sums * w_scale).sum(dim=2) * x_scale",
                "((sums * w_scale).sum(dim=2) * x_scale).T",
            ),
        ),
    ),
    hints=(
        "Which factors are the same for every term of one group's sum? Those may leave it.",
        "Reshape both codes to [.., groups, group_size], as int32, and sum over group_size alone.",
        'torch.einsum("tgi,ogi->tog", x, w) gives [tokens, out, groups]; multiply by w_scale, sum '
        "over the groups, multiply by x_scale.",
    ),
)
