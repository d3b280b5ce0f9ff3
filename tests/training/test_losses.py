"""Losses: what they measure, and labels that cannot be learned from."""

import pytest
import torch
from small_nets import token_batch
from tiny_models import tiny
from torch.nn import functional

from labkit.core.errors import CorpusError, SchemeError
from labkit.core.metrics import logit_kl
from labkit.training.losses import (
    LanguageLoss,
    classification_loss,
    distillation_loss,
    next_token_loss,
    require_classes,
)
from labkit.training.reference.mixture import Batch


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(seed))


def test_distillation_is_the_divergence_from_the_teacher():
    student, teacher = logits(0), logits(1)
    assert float(distillation_loss(student, teacher)) == pytest.approx(
        float(logit_kl(teacher.flatten(0, 1), student.flatten(0, 1))), rel=1e-4
    )
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 50.0])
def test_temperature_keeps_the_size_of_the_gradient(temperature):
    student = logits(0).requires_grad_()
    distillation_loss(student, logits(1), temperature).backward()
    # At a high temperature: (student - teacher, each about its mean) / vocabulary, for each token.
    centred = [x - x.mean(-1, keepdim=True) for x in (student.detach(), logits(1))]
    limit = (centred[0] - centred[1]).norm() / 11 / 10
    assert 0.5 * limit < student.grad.norm() < 4 * limit


def test_weights_choose_what_counts():
    student, teacher, targets = logits(0), logits(1), torch.randint(0, 11, (2, 5))
    first = torch.zeros(2, 5)
    first[:, 0] = 2.0
    assert torch.allclose(
        distillation_loss(student, teacher, weights=first),
        distillation_loss(student[:, :1], teacher[:, :1]),
    )
    assert torch.allclose(
        next_token_loss(student, targets, first),
        functional.cross_entropy(student[:, 0], targets[:, 0]),
    )


def test_the_language_loss_mixes_both():
    student, teacher, ids = tiny("llama", 0), tiny("llama", 1), token_batch(0)
    far = LanguageLoss(teacher, 1.0)(student, ids)
    own = LanguageLoss(None, 0.0)(student, ids)
    mixed = LanguageLoss(teacher, 0.25)(student, Batch(ids, torch.ones(4, 12)))
    assert torch.allclose(mixed, 0.25 * far + 0.75 * own)
    assert torch.allclose(own, student(input_ids=ids, labels=ids).loss, atol=1e-5)
    assert float(LanguageLoss(student, 1.0)(student, ids)) == pytest.approx(0, abs=1e-5)


def test_failures_say_what_to_do():
    with pytest.raises(SchemeError, match="temperature"):
        distillation_loss(logits(0), logits(1), 0.0)
    with pytest.raises(SchemeError, match="without a teacher"):
        LanguageLoss(None, 0.5)
    scores = torch.randn(4, 3)
    with pytest.raises(CorpusError, match="missing"):
        classification_loss(scores, None)
    with pytest.raises(CorpusError, match="0 to 3"):
        classification_loss(scores, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(CorpusError, match="shape"):
        classification_loss(scores, torch.tensor([0, 1]))
    with pytest.raises(CorpusError, match="all 5 labels are 1"):
        require_classes(torch.ones(5, dtype=torch.int64))
    with pytest.raises(CorpusError, match="no labels"):
        require_classes(torch.empty(0, dtype=torch.int64))
    assert require_classes(torch.tensor([0, 2])) == 3
    labels = torch.tensor([0, 1, 2, 2])
    assert torch.allclose(
        classification_loss(scores, labels), functional.cross_entropy(scores, labels)
    )
