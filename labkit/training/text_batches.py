"""Batches of text as a function of the step alone: a resumed run sees what it would have seen."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from labkit.core.errors import CorpusError
from labkit.data import load_corpus


class TextBatches:
    """Rows of `length` + 1 tokens; row by row the next corpus has its turn.

    Args:
        tokenizer: of the model; it puts its own marks at the ends of a document.
        corpora: what `labkit.data.load_corpus` takes, names or text files; of each its training
            split.
        rows, length: of a batch.
        seed: chooses the places.

    Raises:
        CorpusError: no corpus, an unknown or empty one, or one shorter than a row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        corpora: Sequence[str],
        rows: int = 8,
        length: int = 256,
        seed: int = 0,
    ) -> None:
        if not corpora or rows < 1 or length < 1:
            raise CorpusError(
                f"{len(corpora)} corpora for {rows} rows of {length} tokens",
                where="training text",
                remedy="Name at least one corpus, and ask for at least one row of one token.",
            )
        self.tokenizer, self.rows, self.length, self.seed = tokenizer, rows, length, seed
        self.streams = [self._stream(name) for name in corpora]

    def __call__(self, step: int) -> Tensor:
        """int64 [rows, length + 1], the same for the same step."""
        rng = random.Random(f"{self.seed} step {step}")
        turns = range(step * self.rows, (step + 1) * self.rows)
        return torch.stack([self._row(self.streams[i % len(self.streams)], rng) for i in turns])

    def _stream(self, name: str) -> Tensor:
        """All documents of a corpus, one behind the other: int32 [tokens]."""
        documents = list(load_corpus(name, "train").documents)
        encoded = self.tokenizer(documents, verbose=False)["input_ids"] if documents else []
        ids = [number for document in encoded for number in document]
        if len(ids) <= self.length:
            raise CorpusError(
                f"{len(ids)} tokens, and a row has {self.length + 1}",
                where=name,
                remedy="Give more text, or shorter rows.",
            )
        return torch.tensor(ids, dtype=torch.int32)

    def _row(self, stream: Tensor, rng: random.Random) -> Tensor:
        size = self.length + 1
        start = rng.randrange(len(stream) - size + 1)
        return stream[start : start + size].long()
