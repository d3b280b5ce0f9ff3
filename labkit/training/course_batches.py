"""Batches for a short training of the bundled model: everything that it once learned from.

A model that is trained on prose alone forgets how to answer; the mixture of the last phase of its
recipe (`labkit.training.reference.recipe`) holds both domains and all tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from labkit.training.reference.mixture import Batch, Mixture
from labkit.training.reference.recipe import EVERYTHING, Phase, Recipe


def course_batches(
    tokenizer: PreTrainedTokenizerFast, rows: int = 8, length: int = 256, seed: int = 7
) -> Callable[[int], Batch]:
    """A step (from 0) to its `Batch`: tokens int64 [rows, length + 1] and their weights.

    Args:
        seed: of the draw; the bundled model saw others.
    """
    phase = Phase(steps=1 << 30, rows=rows, length=length, shares=EVERYTHING, answer_weight=2.0)
    return Mixture(tokenizer, replace(Recipe(), phases=(phase,), seed=seed)).batch
