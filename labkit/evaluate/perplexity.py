"""Perplexity with a stated context and stride: two figures compare only when both agree."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.core.errors import CorpusError


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood (nats) of `tokens` predicted tokens."""

    nll_sum: float
    tokens: int
    context: int
    stride: int

    @property
    def value(self) -> float:
        return math.exp(self.nll_sum / self.tokens)


def windows(count: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first_scored) of each window over `count` tokens.

    The model reads tokens[start:end] and is scored on those from `first_scored`; every token but
    the very first is scored exactly once. With stride == context windows do not overlap, and the
    last token of one window is the first input of the next (as lm-evaluation-harness rolls).
    """
    scored = 1
    while scored < count:
        end = min(scored + (context if scored == 1 else stride), count)
        start = max(0, end - context - 1)
        yield start, end, scored
        scored = end


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: int = 256,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 16,
) -> Perplexity:
    """Perplexity of `text`: at most `context` tokens are seen before each predicted one.

    `stride` new tokens are scored per window (default: `context`, no overlap). `max_tokens` cuts
    the text. Raises CorpusError for a text of fewer than two tokens, for a stride outside
    1..context, and for a context beyond the model's positions.
    """
    stride = context if stride is None else stride
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and context > limit:
        raise CorpusError(f"context {context} exceeds the model's {limit} positions; lower it")
    if not 1 <= stride <= context:
        raise CorpusError(f"stride must lie in 1..{context} (the context), got {stride}")
    ids = _token_ids(tokenizer, text, max_tokens)
    device = next(model.parameters()).device
    total, count = 0.0, 0
    group: list[tuple[int, int, int]] = []
    for window in [*windows(len(ids), context, stride), None]:
        full = len(group) == batch_size
        ragged = window is not None and group and _length(window) != _length(group[0])
        if group and (window is None or full or ragged):
            nll, scored = _score(model, ids, group, device)
            total, count, group = total + nll, count + scored, []
        if window is not None:
            group.append(window)
    return Perplexity(total, count, context, stride)


def _length(window: tuple[int, int, int]) -> int:
    return window[1] - window[0]


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int | None) -> Tensor:
    """BOS (or what stands for it) and the text; it is context only, never scored."""
    ids = _tokenized(tokenizer, text)[:max_tokens]
    if len(ids) < 2:
        raise CorpusError(f"perplexity needs at least two tokens of text, got {len(ids)}")
    first = tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id
    return torch.tensor(([first] if first is not None else []) + ids)


@functools.lru_cache(maxsize=4)
def _tokenized(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Kept for the next model on the same text: tokenizing takes as long as scoring 2000 tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _score(
    model: PreTrainedModel, ids: Tensor, group: list[tuple[int, int, int]], device: torch.device
) -> tuple[float, int]:
    rows = torch.stack([ids[start:end] for start, end, _ in group]).to(device)
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
    targets = rows[:, 1:]
    nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    nll = nll.view_as(targets)
    total, scored = 0.0, 0
    for row, (start, end, first) in enumerate(group):
        kept = nll[row, first - start - 1 :]
        total += kept.double().sum().item()
        scored += end - first
    return total, scored
