"""How well a classifier does, and how far a rounded copy has moved away from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core import metrics
from labkit.core.errors import CorpusError
from labkit.models.text_classifier import TextBatch


@dataclass(frozen=True)
class ClassifierScore:
    """Shares from 0 to 1.

    Args:
        macro_f1: F1 of each class that occurs, averaged: a rare class counts as much as any.
        accuracy: share of the texts that got their class.
        texts: how many there were.
    """

    macro_f1: float
    accuracy: float
    texts: int


@torch.no_grad()
def logits_of(model: nn.Module, batches: Sequence[TextBatch]) -> Tensor:
    """Logits float32 [texts, classes] in the order of the batches, on the CPU."""
    if not batches:
        raise CorpusError("no texts", "logits_of", "Give at least one batch.")
    return torch.cat([model(batch).float().cpu() for batch in batches])


def labels_of(batches: Sequence[TextBatch]) -> Tensor:
    """Labels int64 [texts] in the order of the batches.

    Raises:
        CorpusError: a batch without labels.
    """
    labels = [batch.labels for batch in batches]
    if not labels or any(row is None for row in labels):
        raise CorpusError("labels are missing", "labels_of", "Give one class index for each text.")
    return torch.cat([row for row in labels if row is not None])


def score_logits(logits: Tensor, labels: Tensor) -> ClassifierScore:
    """The score of logits [texts, classes] for labels int64 [texts].

    Raises:
        CorpusError: none, or not one label for each row.
    """
    if labels.numel() == 0 or labels.shape != logits.shape[:1]:
        raise CorpusError(
            f"{labels.numel()} labels for logits of shape {tuple(logits.shape)}",
            "score_logits",
            "Give one class index for each row.",
        )
    from sklearn.metrics import f1_score

    guesses = logits.argmax(dim=-1)
    macro = f1_score(labels, guesses, labels=torch.unique(labels).tolist(), average="macro")
    return ClassifierScore(float(macro), float((guesses == labels).double().mean()), len(labels))


def classifier_score(model: nn.Module, batches: Sequence[TextBatch]) -> ClassifierScore:
    """The score of a model (as it is: put it in evaluation mode) on labelled batches."""
    return score_logits(logits_of(model, batches), labels_of(batches))


@dataclass(frozen=True)
class Damage:
    """What rounding did to a classifier's answers.

    Args:
        f1_drop: macro F1 before less after. Coarse: it moves when an answer flips, and may even
            rise by luck.
        kl: KL(before || after) of the class probabilities, nats, mean over texts. Any change
            shows.
        flips: share of the texts whose answer changed.
    """

    f1_drop: float
    kl: float
    flips: float


def damage(before: Tensor, after: Tensor, labels: Tensor) -> Damage:
    """The damage between two sets of logits [texts, classes] on the same texts."""
    drop = score_logits(before, labels).macro_f1 - score_logits(after, labels).macro_f1
    flips = float((before.argmax(-1) != after.argmax(-1)).double().mean())
    return Damage(drop, metrics.logit_kl(before, after), flips)
