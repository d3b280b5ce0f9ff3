"""Batches of a new domain: windows of its documents, a function of the step alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from labkit.core.errors import CorpusError


def document_batches(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    rows: int = 8,
    length: int = 128,
    seed: int = 0,
) -> Callable[[int], Tensor]:
    """A step (from 0) to token ids, int64 [rows, length + 1], drawn from all documents in a row.

    Each document begins as the tokenizer begins a text (with BOS, if it has one).

    Raises:
        CorpusError: no rows, or less text than a window.
    """
    encoded = tokenizer(list(documents), verbose=False)["input_ids"] if documents else []
    ids = torch.tensor([token for document in encoded for token in document], dtype=torch.int64)
    last = len(ids) - (length + 1)
    if rows < 1 or length < 1 or last < 0:
        raise CorpusError(
            f"{len(ids)} tokens for {rows} windows of {length} and one more",
            remedy="Give more text, or ask for shorter windows.",
        )

    def batch(step: int) -> Tensor:
        draw = random.Random(f"{seed} batch {step}")
        starts = torch.tensor([[draw.randint(0, last)] for _ in range(rows)])
        return ids[starts + torch.arange(length + 1)]

    return batch
