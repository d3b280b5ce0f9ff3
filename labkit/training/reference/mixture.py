"""Batches as a function of (seed, step) alone, so that a resumed run sees what it would have seen.

A row is all text (a window of a corpus) or all task (whole sessions, one after another).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from labkit.data.corpora import BUNDLED, load_corpus
from labkit.data.tasks import Turn, training_session
from labkit.training.reference.recipe import Phase, Recipe


@dataclass(frozen=True)
class Batch:
    """`tokens` int64 [rows, length + 1]; `weights` float32 [rows, length], for tokens[:, 1:]."""

    tokens: Tensor
    weights: Tensor


class Mixture:
    """Rows of every source, drawn by the recipe's shares."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.bos: int = tokenizer.bos_token_id
        self.streams = {name: self._stream(name) for name in BUNDLED}

    def _stream(self, corpus: str) -> np.ndarray:
        """All documents of a corpus as one array of token ids, a BOS before each."""
        documents = list(load_corpus(corpus, "train").documents)
        encoded = self.tokenizer(documents, verbose=False)["input_ids"]
        return np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded])

    def batch(self, step: int) -> Batch:
        phase = self.recipe.phase_at(step)
        rng = random.Random(f"{self.recipe.seed} batch {step}")
        names = [name for name, _ in phase.shares]
        shares = [share for _, share in phase.shares]
        # Systematic sampling: every batch holds each source in nearly its share.
        start = rng.random()
        edges = np.cumsum(shares) / sum(shares)
        points = (np.arange(phase.rows) + start) / phase.rows
        picks = np.minimum(np.searchsorted(edges, points), len(names) - 1)
        rows = [self._row(names[pick], phase, rng) for pick in picks]
        tokens = torch.from_numpy(np.stack([tokens for tokens, _ in rows]).astype(np.int64))
        weights = torch.from_numpy(np.stack([weights for _, weights in rows]))
        return Batch(tokens, weights[:, 1:].contiguous())

    def _row(self, name: str, phase: Phase, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        size = phase.length + 1
        if name in self.streams:
            stream = self.streams[name]
            start = rng.randrange(len(stream) - size)
            return stream[start : start + size], np.ones(size, dtype=np.float32)
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            ids, marks = self.encode(training_session(name, rng), phase.answer_weight)
            tokens += ids
            weights += marks
        return (
            np.asarray(tokens[:size], dtype=np.int32),
            np.asarray(weights[:size], dtype=np.float32),
        )

    def encode(self, turns: list[Turn], answer_weight: float) -> tuple[list[int], list[float]]:
        """Token ids of a session and the loss weight of each.

        A token counts as answer when it begins inside an answer's characters.
        """
        text = "".join(turn.prompt + turn.answer for turn in turns)
        is_answer = np.zeros(len(text) + 1, dtype=bool)
        place = 0
        for turn in turns:
            place += len(turn.prompt)
            is_answer[place : place + len(turn.answer)] = True
            place += len(turn.answer)
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        high, low = answer_weight, self.recipe.prompt_weight
        weights = [
            high if is_answer[start] and end > start else low
            for start, end in encoding["offset_mapping"]
        ]
        return encoding["input_ids"], weights
