"""Exercise 08.4: what the rounded model learns from the float one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.training.losses import distillation_loss

Case = tuple[torch.Tensor, torch.Tensor, float]


def distill(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · mean over tokens of KL(teacher || student), logits [tokens, vocabulary] over T."""
    return distillation_loss(student, teacher, temperature)


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    def logits(tokens: int, words: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((tokens, words)) * 2)

    same = logits(3, 5)
    yield same, same.clone(), 1.0
    yield torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[np.log(3.0), 0.0]]), 1.0
    yield same, logits(3, 5), 2.0
    for number in range(9):
        tokens, words = int(rng.integers(2, 7)), int(rng.integers(3, 9))
        yield logits(tokens, words), logits(tokens, words), (1.0, 2.0, 4.0)[number % 3]


def _zero_if_the_same(trial: Trial) -> str | None:
    """a student that says what the teacher says has loss 0; no student has less"""
    again = float(trial.call(trial["teacher"], trial["teacher"], trial["temperature"]))
    if abs(again) > 1e-6:
        return f"a student equal to its teacher has loss {again:.3g}"
    if float(trial.got) < -1e-9:
        return f"the loss is {float(trial.got):.3g}"
    return None


DISTILL = Exercise(
    id="08.4",
    title="Learn from the float model",
    minutes=8,
    difficulty=2,
    goal="measure how far the rounded model's predictions are from the float model's",
    stub='''
    def distill(student, teacher, temperature):
        """T² times the mean over tokens of KL(teacher || student); logits [tokens, vocabulary]."""
        ...
    ''',
    solution='''
    def distill(student, teacher, temperature):
        """T² times the mean over tokens of KL(teacher || student); logits [tokens, vocabulary]."""
        ours = F.log_softmax(student / temperature, dim=-1)
        theirs = F.log_softmax(teacher / temperature, dim=-1)
        divergence = (theirs.exp() * (theirs - ours)).sum(dim=-1)
        return temperature**2 * divergence.mean()
    ''',
    reference=distill,
    answer_key=distillation_loss,
    generate=_cases,
    bounds=(_zero_if_the_same, matches_reference(rtol=1e-4, atol=1e-6)),
    mutants=(
        Mutant(
            "You weigh by the student: KL(student || teacher). It asks nothing of what the "
            "teacher holds possible and the student has given up.",
            swap=("theirs.exp() * (theirs - ours)", "ours.exp() * (ours - theirs)"),
        ),
        Mutant(
            "T² is missing: with temperature T both logits are divided by T, and so the "
            "gradient shrinks with T².",
            swap=("temperature**2 * divergence.mean()", "divergence.mean()"),
        ),
        Mutant(
            "The factor is T², not T: the divergence of two flattened distributions shrinks "
            "with the square.",
            swap=("temperature**2 *", "temperature *"),
        ),
        Mutant(
            "Only the student's logits were divided by T. Both are softened, or the student "
            "learns to be T times as sure as the teacher.",
            swap=("teacher / temperature", "teacher"),
        ),
        Mutant(
            "You averaged over the vocabulary as well (F.kl_div's reduction='mean' does that). "
            "A divergence is a sum over all words, and a mean over tokens.",
            swap=(".sum(dim=-1)", ".mean(dim=-1)"),
        ),
        Mutant(
            "You summed over tokens: the loss, and the step, would grow with the batch.",
            swap=("divergence.mean()", "divergence.sum()"),
        ),
        Mutant(
            "You multiplied the logits by T. A temperature divides: above 1 it shows more of the "
            "unlikely words.",
            swap=(
                ("student / temperature", "student * temperature"),
                ("teacher / temperature", "teacher * temperature"),
            ),
        ),
        Mutant(
            "That is the cross-entropy with the teacher's probabilities. Its gradient is the "
            "same, but it is not 0 where the two agree: the teacher's own entropy is in it.",
            swap=("theirs.exp() * (theirs - ours)", "theirs.exp() * -ours"),
        ),
        Mutant(
            "The softmax runs over the words of one token, the last axis, not over tokens.",
            swap=(
                (
                    "F.log_softmax(student / temperature, dim=-1)",
                    "F.log_softmax(student / temperature, dim=0)",
                ),
                (
                    "F.log_softmax(teacher / temperature, dim=-1)",
                    "F.log_softmax(teacher / temperature, dim=0)",
                ),
            ),
        ),
    ),
    hints=(
        "KL(p || q) = Σ p (log p - log q), p the teacher's: first soften both, then log_softmax.",
        "Sum over the vocabulary, mean over tokens, and T² in front.",
        "theirs.exp() * (theirs - ours), with ours and theirs from F.log_softmax(... / T, dim=-1).",
    ),
)
