"""What training lowers: the next token's loss, the distance to the float model, or a mixture.

The float model is the best teacher of its own rounded copy: for each token it gives a whole
distribution instead of one right answer, and it asks for nothing but what the copy could do before
(self-distillation: LLM-QAT, Liu et al. 2023, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.core.errors import CorpusError, SchemeError


def next_token_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        logits: [rows, length, vocabulary].
        targets: int64 [rows, length]: the token that each position should give.
        weights: float [rows, length], how much each counts; None for all alike.
    """
    nll = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return _weighted_mean(nll, weights)


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Mean KL(teacher || student) in nats, of logits [rows, length, vocabulary], times T².

    A temperature T above 1 shows more of what the teacher holds for nearly possible. Its factor T²
    keeps the gradient's size. Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network", section 2.

    Raises:
        SchemeError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise SchemeError(f"temperature {temperature}", remedy="Choose a number above 0.")
    ours = functional.log_softmax(student.float().flatten(0, -2) / temperature, dim=-1)
    theirs = functional.log_softmax(teacher.float().flatten(0, -2) / temperature, dim=-1)
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _weighted_mean(divergence, weights)


def classification_loss(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Mean cross-entropy of logits [rows, classes] and labels int64 [rows].

    Raises:
        CorpusError: labels that are missing, do not fit the rows, or name no class.
    """
    if labels is None:
        raise CorpusError("labels are missing", remedy="Give one class index for each row.")
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise CorpusError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype}",
            where=f"logits of shape {tuple(logits.shape)}",
            remedy="Give one class index (int64) for each row.",
        )
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise CorpusError(
            f"labels from {int(labels.min())} to {int(labels.max())}",
            where=f"{classes} classes",
            remedy=f"Class indices run from 0 to {classes - 1}.",
        )
    return functional.cross_entropy(logits.float(), labels)


def require_classes(labels: Tensor) -> int:
    """The number of classes in a training set (int64 [rows]): the largest label plus one.

    Raises:
        CorpusError: no labels, or one class alone: there would be nothing to tell apart.
    """
    found = torch.unique(labels)
    if len(found) < 2:
        what = f"all {labels.numel()} labels are {int(found[0])}" if len(found) else "no labels"
        raise CorpusError(what, where="training set", remedy="Give examples of every class.")
    return int(found[-1]) + 1


@dataclass(frozen=True)
class LanguageLoss:
    """The loss of a causal LM on a batch: `distill` · KL to the teacher + the rest · cross-entropy.

    Args:
        teacher: the float model; None for cross-entropy alone.
        distill: share of the teacher, 0 to 1.
        temperature: of the distillation.

    Called with a model and a batch (`labkit.training.reference.mixture.Batch`, or int64 token ids
    [rows, length + 1]).

    Raises:
        SchemeError: a share outside of 0 to 1; without a teacher, one other than 0.
    """

    teacher: nn.Module | None = field(default=None, repr=False)
    distill: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.distill <= 1 or (self.teacher is None and self.distill > 0):
            article = "without a" if self.teacher is None else "with a"
            raise SchemeError(
                f"distill {self.distill} {article} teacher",
                where="LanguageLoss",
                remedy="Give a share from 0 to 1, and a teacher if it is above 0.",
            )

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        device = next(model.parameters()).device
        tokens = (batch if isinstance(batch, Tensor) else batch.tokens).to(device)
        weights = None if isinstance(batch, Tensor) else batch.weights.to(device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.teacher is not None and self.distill > 0:
            with torch.no_grad():
                wanted = self.teacher(input_ids=inputs, use_cache=False).logits
            loss = self.distill * distillation_loss(logits, wanted, self.temperature, weights)
        if self.distill < 1:
            loss = loss + (1 - self.distill) * next_token_loss(logits, targets, weights)
        return loss


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.mean()
    flat = weights.flatten()
    return (values * flat).sum() / flat.sum()
