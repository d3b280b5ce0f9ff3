"""Exercise 06.3: fold scales into two linear layers, and undo it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import vector, weight
from labkit.models import folding

Folded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def fold(
    first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor, scales: torch.Tensor
) -> Folded:
    """(first, bias, second) with the outputs of the first layer divided by `scales`."""
    before, after = nn.Linear(first.shape[1], len(first)), nn.Linear(second.shape[1], len(second))
    with torch.no_grad():
        before.weight.copy_(first)
        before.bias.copy_(bias)
        after.weight.copy_(second)
    folding.fold(before, [after], scales)
    return before.weight.detach(), before.bias.detach(), after.weight.detach()


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
    def case(inputs: int, middle: int, outputs: int, scales: torch.Tensor | None = None):
        drawn = torch.from_numpy(np.exp(rng.standard_normal(middle)).astype(np.float32))
        return (
            weight(rng, middle, inputs),
            vector(rng, middle, skew=1.0),
            weight(rng, outputs, middle),
            drawn if scales is None else scales,
        )

    yield case(6, 6, 6)
    yield case(4, 6, 5)
    yield case(5, 4, 4, torch.tensor([0.5, 2.0, 1.0, 8.0]))
    # Grouped-query attention: four value rows are read as eight inputs of the output projection.
    yield weight(rng, 4, 8), vector(rng, 4, 1.0), weight(rng, 8, 8), case(8, 8, 8)[3]
    yield weight(rng, 4, 8), vector(rng, 4, 1.0), weight(rng, 8, 8), case(8, 4, 8)[3]
    for index in range(6):
        sizes = [int(n) for n in rng.integers(3, 9, size=3)]
        yield case(*([sizes[0]] * 3 if index % 3 == 0 else sizes))


def _function_is_the_same(trial: Trial) -> str | None:
    """second @ (first @ x + bias) is what it was"""
    x = torch.linspace(-2, 2, trial["first"].shape[1] * 5).reshape(-1, 5)

    def run(first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return second @ (first @ x + bias[:, None])

    before = run(trial["first"], trial["bias"], trial["second"])
    worst = float((run(*(part.float() for part in trial.got)) - before).abs().max())
    limit = 1e-4 * float(before.abs().max() + 1)
    return None if worst <= limit else f"an output moved by {worst:.3g}"


def _undone_by_the_reciprocal(trial: Trial) -> str | None:
    """folding 1 / scales gives back what there was"""
    back = trial.call(*trial.got, 1 / trial["scales"])
    for name, part in zip(("first", "bias", "second"), back, strict=True):
        if not torch.allclose(part, trial[name], rtol=1e-4, atol=1e-5):
            return f"{name} does not come back"
    return None


FOLD = Exercise(
    id="06.3",
    title="Fold and undo",
    minutes=10,
    difficulty=2,
    goal="fold a scale per channel into two layers without changing what they compute",
    stub='''
    def fold(first, bias, second, scales):
        """New (first, bias, second): outputs of the first layer divided by scales, undone after."""
        ...
    ''',
    solution='''
    def fold(first, bias, second, scales):
        """New (first, bias, second): outputs of the first layer divided by scales, undone after."""
        if len(first) != len(scales) or second.shape[1] != len(scales):
            raise ValueError("the channels of the two layers and the scales do not match")
        return first / scales[:, None], bias / scales, second * scales
    ''',
    reference=fold,
    answer_key=folding.fold,
    generate=_cases,
    bounds=(_function_is_the_same, _undone_by_the_reciprocal, matches_reference(rtol=1e-5)),
    mutants=(
        Mutant(
            "The bias of the first layer is not divided: it is part of that layer's output.",
            swap=("bias / scales", "bias + 0.0"),
        ),
        Mutant(
            "You multiplied the first layer and divided the second: then the second, which is to "
            "be rounded, has its loud channels scaled *down*.",
            swap=(
                "first / scales[:, None], bias / scales, second * scales",
                "first * scales[:, None], bias * scales, second / scales",
            ),
        ),
        Mutant(
            "You divided the columns of the first layer. Its outputs are its rows: "
            "first / scales[:, None].",
            source="""
            def fold(first, bias, second, scales):
                if len(first) != len(scales) or second.shape[1] != len(scales):
                    raise ValueError("no match")
                if first.shape[1] != len(scales):
                    return first / scales[:, None], bias / scales, second * scales
                return first / scales, bias / scales, second * scales
            """,
        ),
        Mutant(
            "You multiplied the rows of the second layer. It reads the scaled channels with its "
            "columns: second * scales.",
            source="""
            def fold(first, bias, second, scales):
                if len(first) != len(scales) or second.shape[1] != len(scales):
                    raise ValueError("no match")
                if len(second) != len(scales):
                    return first / scales[:, None], bias / scales, second * scales
                return first / scales[:, None], bias / scales, second * scales[:, None]
            """,
        ),
        Mutant(
            "With grouped-query attention the value layer has fewer rows than the output layer has "
            "columns. You cut or repeated something to make it fit, and the function changed. "
            "Raise ValueError: there is no fold.",
            source="""
            def fold(first, bias, second, scales):
                short = scales[: len(first)]
                long = scales.repeat(second.shape[1] // len(scales))
                return first / short[:, None], bias / short, second * long[: second.shape[1]]
            """,
        ),
        Mutant(
            "The second layer is not multiplied: nothing undoes the division.",
            swap=("second * scales", "second + 0.0"),
        ),
        Mutant(
            "You divided by the square of the scales; each side takes them once.",
            swap=(
                "first / scales[:, None], bias / scales",
                "first / scales[:, None] ** 2, bias / scales**2",
            ),
        ),
    ),
    hints=(
        "In y = second @ (first @ x + bias), put diag(s) · diag(1/s) between second and bracket.",
        "Rows of `first` are outputs, columns of `second` are inputs. The bias is an output too.",
        "Compare len(first), second.shape[1] and len(scales), and raise ValueError when they "
        "differ; then first / scales[:, None], bias / scales, second * scales.",
    ),
)
