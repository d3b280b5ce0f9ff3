"""Exercise 05.5: from the order of rounding back to the order of the layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.gptq_order import inverse

Found = tuple[torch.Tensor, torch.Tensor]


def undo_order(codes: torch.Tensor, order: torch.Tensor, group_size: int) -> Found:
    """(codes in the layer's order, the group of each of its columns)."""
    back = inverse(order)
    return codes[:, back], torch.arange(len(order))[back] // group_size


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    def codes(rows: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-7, 8, (rows, columns)))

    yield torch.tensor([[10, 20, 30, 40, 50, 60]]), torch.tensor([2, 0, 4, 5, 3, 1]), 2
    yield torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([1, 2, 3, 0]), 2
    yield codes(8, 8), torch.tensor([3, 0, 1, 2, 7, 4, 5, 6]), 4
    for number in range(9):
        size = (2, 3, 4)[number % 3]
        columns = size * int(rng.integers(2, 5))
        rows = columns if number % 3 == 0 else int(rng.integers(2, 6))
        yield codes(rows, columns), torch.from_numpy(rng.permutation(columns)), size


def _nothing_lost(trial: Trial) -> str | None:
    """every column of codes is there once, and every group has group_size columns"""
    codes, g_idx = trial.got
    if not torch.equal(codes[:, trial["order"]], trial["codes"]):
        return "sorting the answer's columns by `order` does not give the codes that came in"
    counts = torch.bincount(g_idx)
    if len(set(counts.tolist())) != 1 or int(counts[0]) != trial["group_size"]:
        return f"the groups have {counts.tolist()} columns"
    return None


ORDER = Exercise(
    id="05.5",
    title="Act-order, and back",
    minutes=10,
    difficulty=3,
    goal="undo the order of rounding and say which group each column belongs to",
    stub='''
    def undo_order(codes, order, group_size):
        """(codes [out, in] in the layer's order, g_idx [in]); codes[:, i] is column order[i]."""
        ...
    ''',
    solution='''
    def undo_order(codes, order, group_size):
        """(codes [out, in] in the layer's order, g_idx [in]); codes[:, i] is column order[i]."""
        back = torch.argsort(order)
        place = torch.arange(len(order))
        return codes[:, back], place[back] // group_size
    ''',
    reference=undo_order,
    answer_key=inverse,
    generate=_cases,
    bounds=(_nothing_lost, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You applied the order a second time. What undoes it is the inverse permutation.",
            swap=("torch.argsort(order)", "order"),
        ),
        Mutant(
            "You left the codes in the order of rounding. The layer's inputs do not come sorted.",
            swap=("codes[:, back]", "codes"),
        ),
        Mutant(
            "You gave column i the group i // group_size. Groups were cut after sorting, so "
            "neighbours in the layer may be in different ones: that is why g_idx is stored.",
            swap=("place[back] // group_size", "place // group_size"),
        ),
        Mutant(
            "You put the codes back and not the groups: order[i] // group_size belongs to the "
            "i-th column that was rounded, not to column i.",
            swap=("place[back] // group_size", "order // group_size"),
        ),
        Mutant(
            "You put the groups back and not the codes: codes[:, order] sorts them once more.",
            swap=("codes[:, back]", "codes[:, order]"),
        ),
        Mutant(
            "You took the remainder: that is a column's place in its group, not the group.",
            swap=("// group_size", "% group_size"),
        ),
    ),
    hints=(
        "codes[:, i] belongs to column order[i]. Where does column 0 stand in `order`?",
        "torch.argsort of a permutation is its inverse.",
        "The i-th column that was rounded is in group i // group_size; put that back likewise.",
    ),
)
