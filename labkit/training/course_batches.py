"""Batches for a short training of the bundled model: of everything that it once learned from.

A model that is trained on text alone forgets how to answer. But the tasks are easy where the float
model is the teacher, and text is where rounding costs most, so text has 85 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from labkit.training.reference.mixture import Batch, Mixture
from labkit.training.reference.recipe import Phase, Recipe, Shares

SHARES: Shares = (
    ("stdlib-code", 0.55),
    ("stdlib-prose", 0.30),
    ("doctest", 0.05),
    ("sums", 0.025),
    ("facts", 0.025),
    ("recall", 0.025),
    ("repl", 0.025),
)


def course_batches(
    tokenizer: PreTrainedTokenizerFast, rows: int = 8, length: int = 256, seed: int = 7
) -> Callable[[int], Batch]:
    """A step (from 0) to its `Batch`: tokens int64 [rows, length + 1] and their weights.

    Args:
        seed: of the draw; the bundled model saw others.
    """
    phase = Phase(steps=1 << 30, rows=rows, length=length, shares=SHARES, answer_weight=2.0)
    return Mixture(tokenizer, replace(Recipe(), phases=(phase,), seed=seed)).batch
