"""Exercise 07.6: the best scale for given codes, where errors do not all count the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial


def weighted_scale(x: np.ndarray, codes: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Scale of each block, float [n], with least Σ importance (x - scale * code)²."""
    x, codes = x.astype(np.float64), codes.astype(np.float64)
    above = (importance * x * codes).sum(axis=1)
    below = (importance * codes * codes).sum(axis=1)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0).astype(np.float32)


def _cases(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    def drawn(rows: int, columns: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = rng.standard_normal((rows, columns)).astype(np.float32) * 3
        x[:, 0] = np.abs(x[:, 0]) + 4  # codes of the largest weight are not 0
        step = np.abs(x).max(axis=1, keepdims=True) / levels
        codes = np.round(x / step).astype(np.int8)
        return x, codes, rng.uniform(0.1, 5, columns).astype(np.float32)

    x, codes, importance = drawn(2, 4, 3)
    yield x, codes * 0, importance
    yield x, codes, np.array([1, 0, 0, 0], np.float32)
    yield x, -codes, importance
    yield drawn(8, 8, 4)
    for _ in range(8):
        rows, columns = int(rng.integers(1, 6)), int(rng.integers(2, 17))
        yield drawn(rows, columns, int(rng.integers(2, 8)))


def _error(trial: Trial, scale: np.ndarray) -> np.ndarray:
    left = trial["x"].astype(np.float64) - scale[:, None] * trial["codes"]
    return (trial["importance"] * left**2).sum(axis=1)


def _least(trial: Trial) -> str | None:
    """no other scale has a smaller weighted error"""
    if trial.got.shape != (len(trial["x"]),):
        return f"you return {list(trial.got.shape)}"
    got = trial.got.astype(np.float64)
    for other in (got * 1.01, got * 0.99):
        better = _error(trial, other) < _error(trial, got) * (1 - 1e-6) - 1e-9
        if better.any():
            return f"in block {int(np.argmax(better))} a scale one per cent away is better"
    return None


WEIGHTED_SCALE = Exercise(
    id="07.6",
    title="The best scale",
    minutes=10,
    difficulty=3,
    goal="fit a block's scale to its codes under an importance",
    stub='''
    def weighted_scale(x, codes, importance):
        """float [n]: for x, codes [n, k] the scale of least sum of importance [k] * error ** 2."""
        ...
    ''',
    solution='''
    def weighted_scale(x, codes, importance):
        """float [n]: for x, codes [n, k] the scale of least sum of importance [k] * error ** 2."""
        codes = codes.astype(np.float64)
        above = (importance * x * codes).sum(axis=1)
        below = (importance * codes**2).sum(axis=1)
        return above / np.where(below > 0, below, 1)
    ''',
    reference=weighted_scale,
    answer_key=weighted_scale,
    generate=_cases,
    bounds=(_least, matches_reference(rtol=1e-4, atol=1e-6)),
    mutants=(
        Mutant(
            "The importance is not used: every error counts the same.",
            swap=(
                ("(importance * x * codes)", "(x * codes)"),
                ("(importance * codes**2)", "(codes**2)"),
            ),
        ),
        Mutant(
            "The importance is in only one of the two sums: weighted least squares has it in both.",
            swap=("(importance * codes**2)", "(codes**2)"),
        ),
        Mutant(
            "Σ w x / Σ w q makes the mean error zero, not the squared error least. Set the "
            "derivative of Σ w (x - d q)² to zero: Σ w x q / Σ w q².",
            swap=(
                ("(importance * x * codes)", "(np.sign(codes) * importance * x)"),
                ("(importance * codes**2)", "(importance * np.abs(codes))"),
            ),
        ),
        Mutant(
            "You squared the importance: the error is squared, its weight is not.",
            swap=(
                ("(importance * x * codes)", "(importance**2 * x * codes)"),
                ("(importance * codes**2)", "(importance**2 * codes**2)"),
            ),
        ),
        Mutant(
            "That is the largest weight over the largest code: the scale before any search. It "
            "leaves the other weights out.",
            source="""
            def weighted_scale(x, codes, importance):
                top = np.abs(x).max(axis=1) * np.sign((x * codes).sum(axis=1))
                below = np.abs(codes.astype(np.float64)).max(axis=1)
                return np.where(below > 0, top / np.where(below > 0, below, 1), 0.0)
            """,
        ),
        Mutant(
            "One scale for all blocks: sum over the weights of a block, axis 1, not over all.",
            source="""
            def weighted_scale(x, codes, importance):
                codes = codes.astype(np.float64)
                below = (importance * codes**2).sum()
                scale = (importance * x * codes).sum() / (below if below > 0 else 1)
                return np.full(len(x), scale)
            """,
        ),
        Mutant(
            "You fitted codes to weights, d = Σ w x² / Σ w x q: that makes the error of the codes "
            "least, and codes are what is fixed.",
            source="""
            def weighted_scale(x, codes, importance):
                codes = codes.astype(np.float64)
                below = (importance * x * codes).sum(axis=1)
                above = (importance * x.astype(np.float64) ** 2).sum(axis=1)
                return np.where(below != 0, above / np.where(below != 0, below, 1), 0.0)
            """,
        ),
    ),
    hints=(
        "For fixed codes the error Σ w (x - d q)² is a parabola in d. Where is its derivative 0?",
        "d = Σ w x q / Σ w q², sums over the weights of a block (axis 1).",
        "Codes are int8: convert to float before you square them. Where all codes are 0, return 0.",
    ),
)
