"""Task accuracy: greedy exact match, read off one forward pass.

Greedy decoding writes the answer exactly when, with the answer's own tokens as input, the most
likely next token is right at every place. So a batch of questions costs one forward pass instead
of one per generated token; a test compares this with `model.generate`.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.data.tasks import TaskItem, make_task


@dataclass(frozen=True)
class TaskResult:
    """Correct answers out of `total`, in all and for each kind of question."""

    name: str
    correct: int
    total: int
    by_kind: dict[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.correct, self.total)


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927): sane at 0 % and at 100 %."""
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _encode(tokenizer: PreTrainedTokenizerBase, item: TaskItem) -> tuple[list[int], int]:
    """Token ids of question and answer, and how many of them are the answer."""
    prompt = tokenizer(item.prompt)["input_ids"]
    both = tokenizer(item.prompt + item.answer)["input_ids"]
    if both[: len(prompt)] != prompt:  # a tokenizer that merges across the border
        both = prompt + tokenizer(item.answer, add_special_tokens=False)["input_ids"]
    return both, len(both) - len(prompt)


@torch.inference_mode()
def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[TaskItem],
    batch_size: int = 8,
) -> list[bool]:
    """For each question, whether greedy decoding writes exactly its answer.

    Questions differ in length: batches much larger than these are mostly padding.
    """
    encoded = [_encode(tokenizer, item) for item in items]
    order = sorted(range(len(items)), key=lambda index: len(encoded[index][0]))
    right = [False] * len(items)
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(encoded[index][0]) for index in chosen)
        first = min(len(ids) - count for ids, count in (encoded[index] for index in chosen)) - 1
        tokens = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, index in enumerate(chosen):
            ids = encoded[index][0]
            tokens[row, : len(ids)] = torch.tensor(ids)
        # Padding stands to the right of every answer: causal attention never sees it.
        best = _best_next(model, tokens.to(device), width - first).cpu()
        for row, index in enumerate(chosen):
            ids, count = encoded[index]
            end = len(ids) - first
            right[index] = best[row, end - count - 1 : end - 1].tolist() == ids[-count:]
    return right


def _best_next(model: PreTrainedModel, tokens: Tensor, last: int) -> Tensor:
    """Most likely next token at the `last` places; where the model can leave out others, it does.

    GPT-2 and OPT of transformers 4 know no `logits_to_keep`.
    """
    can_skip = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": last} if can_skip else {}
    logits = model(input_ids=tokens, use_cache=False, **options).logits
    return logits[:, -last:].argmax(dim=-1)


def task_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    n: int = 200,
    seed: int = 0,
) -> TaskResult:
    """Greedy exact match on `n` generated questions of one task."""
    items = make_task(name, n, seed)
    right = answered(model, tokenizer, items)
    totals = Counter(item.kind for item in items)
    hits = Counter(item.kind for item, ok in zip(items, right, strict=True) if ok)
    by_kind = {kind: (hits[kind], count) for kind, count in sorted(totals.items())}
    return TaskResult(name, sum(right), n, by_kind)
