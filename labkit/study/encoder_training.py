"""The study's training: the classifier itself, and training with rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.core.scheme import QuantScheme
from labkit.data.labelled import LabelledTexts
from labkit.evaluate.classification import classifier_score, labels_of, logits_of
from labkit.models.text_classifier import Epochs, TextBatch
from labkit.training.checkpoint import History
from labkit.training.convert import convert
from labkit.training.losses import classification_loss, distillation_loss
from labkit.training.prepare import QatConfig, prepare
from labkit.training.trainer import TrainSettings, train

if TYPE_CHECKING:
    from labkit.study.encoder import Lab

FROZEN_BLOCKS = 3
EPOCHS = 2
# Losses near zero vary by whole factors from batch to batch, without any harm.
_DIVERGENCE = 30.0
_TELL_EVERY = 35


def settings(batches: int, steps: int | None = None) -> TrainSettings:
    """Of the fine-tuning; `steps` None for all epochs."""
    return TrainSettings(
        steps=steps or EPOCHS * batches,
        lr=1e-4,
        weight_decay=0.01,
        warmup=10,
        evaluate_every=max(1, batches // 2),
        divergence=_DIVERGENCE,
    )


def freeze_bottom(model: nn.Module, blocks: int = FROZEN_BLOCKS) -> None:
    """Leave the tables and the first blocks as pretraining made them.

    They know words, which a few thousand docstrings would not teach better; and no gradient has to
    be carried through them.
    """
    model.encoder.embeddings.requires_grad_(False)
    model.encoder.encoder.layer[:blocks].requires_grad_(False)


def fine_tune(
    model: nn.Module,
    batches: list[TextBatch],
    validation: list[TextBatch],
    tell: Callable[[str], None] = print,
    steps: int | None = None,
) -> History:
    """Train the classifier in place; the history holds the macro F1 on validation modules.

    The head comes first, alone (`fit_head`). With a head that knows nothing, the first steps would
    drag the encoder about, and what it learned in pretraining would be lost on texts unlike those
    of training (Kumar et al. 2022, "Fine-tuning can distort pretrained features").
    """
    fit_head(model, batches)
    freeze_bottom(model)
    return train(
        model,
        Epochs(batches),
        settings(len(batches), steps),
        loss=labelled_loss,
        evaluate=lambda network: {"macro_f1": classifier_score(network, validation).macro_f1},
        progress=_progress(tell),
    )


@torch.no_grad()
def fit_head(model: nn.Module, batches: list[TextBatch], inverse_penalty: float = 1.0) -> None:
    """Set the head to a logistic regression on the states of the encoder as it is.

    Raises:
        CorpusError: labels that are missing.
    """
    from sklearn.linear_model import LogisticRegression

    labels, head = labels_of(batches), model.head
    states = []
    handle = head.register_forward_pre_hook(lambda _, args: states.append(args[0].cpu()))
    try:
        logits_of(model, batches)
    finally:
        handle.remove()
    features = torch.cat(states)
    length = float(features.norm(dim=1).mean())  # so that the penalty knows features of length 1
    fitted = LogisticRegression(C=inverse_penalty, max_iter=500)
    fitted.fit((features / length).numpy(), labels.numpy())
    rows, shifts = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(rows) == 1:  # of two classes it keeps the difference alone
        rows, shifts = torch.cat([-rows, rows]) / 2, torch.cat([-shifts, shifts]) / 2
    seen = torch.from_numpy(fitted.classes_)
    head.weight.zero_()[seen] = (rows / length).to(head.weight)
    head.bias.zero_()[seen] = shifts.to(head.bias)


def labelled_loss(model: nn.Module, batch: TextBatch):
    """Cross-entropy with the labels."""
    return classification_loss(model(batch), batch.labels)


def floors(train_texts: LabelledTexts, heldout: LabelledTexts) -> dict[str, float]:
    """Macro F1 of word counts with logistic regression: what needs no encoder."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    words = TfidfVectorizer(sublinear_tf=True)
    table = words.fit_transform(train_texts.texts)
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(table, train_texts.labels)
    guesses = fitted.predict(words.transform(heldout.texts))
    return {"words": float(f1_score(heldout.labels, guesses, average="macro"))}


# what is said of it -> (bits, how many of the most sensitive layers stay in floating point)
QAT_RUNS = {
    "3 bits, all layers": (3, 0),
    "2 bits, all layers": (2, 0),
    "2 bits, the 6 most sensitive in FP16": (2, 6),
}


def qat(
    lab: Lab,
    bits: int,
    keep: tuple[str, ...],
    tell: Callable[[str], None],
    steps: int | None = None,
) -> tuple[nn.Module, nn.Module, History]:
    """(model rounded but not trained, trained, history): the float classifier is the teacher."""
    config = QatConfig(QuantScheme(bits, True, "channel", narrow_range=False), keep=keep)
    rounded = prepare(lab.model, config, tell=lambda text: None).eval()
    trained = prepare(lab.model, config, tell=tell)
    trained.encoder.embeddings.requires_grad_(False)
    teacher = lab.model

    def loss(model: nn.Module, batch: TextBatch):
        return distillation_loss(model(batch), teacher(batch).detach(), temperature=2.0)

    history = train(
        trained,
        Epochs(lab.batches, seed=1),
        TrainSettings(steps=steps or len(lab.batches), lr=3e-4, warmup=10, divergence=_DIVERGENCE),
        teacher=teacher,
        loss=loss,
        progress=_progress(tell),
    )
    return rounded, trained, history


def measure(
    lab: Lab, ranking: list[str], tell: Callable[[str], None], steps: int | None = None
) -> list[dict[str, Any]]:
    """Before and after training with rounded weights; the trained model is measured as integers."""
    rows = []
    plans = dict(list(QAT_RUNS.items())[-1:]) if steps else QAT_RUNS
    for what, (bits, kept) in plans.items():
        keep = tuple(name for name in ranking if ".layer." in name)[:kept]
        rounded, trained, history = qat(lab, bits, keep, tell, steps)
        whole = convert(trained)
        row = {
            "what": what,
            "bits": bits,
            "keep": list(keep),
            "steps": len(history),
            "before": asdict(classifier_score(rounded, lab.heldout)),
            "after": asdict(classifier_score(whole.model, lab.heldout)),
            "loss": [entry["loss"] for entry in history],
        }
        tell(f"{what}: {row['before']['macro_f1']:.3f} to {row['after']['macro_f1']:.3f}")
        rows.append(row)
    return rows


def _progress(tell: Callable[[str], None]):
    def say(word: str, done: int, of: int) -> None:
        if done % _TELL_EVERY == 0 or done == of:
            tell(f"{done}/{of} {word}")

    return say
