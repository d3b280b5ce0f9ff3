"""A text classifier on MiniLM, from floats to the fewest bits that do. `labkit study encoder`

Layers, limits and learning rates are chosen on the validation modules; what is reported comes from
modules that neither training nor choosing has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from labkit.data.labelled import LabelledTexts, load_labelled
from labkit.evaluate.classification import classifier_score, labels_of, logits_of
from labkit.models.mixed_precision import all_doubles
from labkit.models.text_classifier import TextBatch, text_classifier, tokenize
from labkit.study import encoder_calibration, encoder_mixed, encoder_runtime, encoder_training

KEEP = 0.95  # share of the original F1 that a smaller model must keep


@dataclass(frozen=True)
class Lab:
    """What every part of the study works with: a trained classifier in floats, and the texts."""

    model: nn.Module
    tokenizer: Any
    train: LabelledTexts
    batches: list[TextBatch]
    validation: list[TextBatch]
    heldout: list[TextBatch]


def run(quick: bool = False, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """All tables; "quick" takes a few texts, steps and layers of each."""
    lab, training = fine_tuned(tell, 64 if quick else None, 2 if quick else None)
    doubles = all_doubles(lab.model)
    if quick:
        doubles = dict(list(doubles.items())[:3])
    mixed = encoder_mixed.measure(lab, doubles, tell)
    float_logits = logits_of(lab.model, lab.heldout)
    return {
        "texts": {
            "train": len(lab.train),
            "validation": len(labels_of(lab.validation)),
            "heldout": len(float_logits),
        },
        "classes": list(lab.train.classes),
        "training": training,
        **mixed,
        "qat": encoder_training.measure(lab, mixed["ranking"], tell, steps=2 if quick else None),
        "calibration": encoder_calibration.measure(lab, tell),
        "runtime": encoder_runtime.measure(lab, tell, rounds=2 if quick else 15),
    }


def fine_tuned(
    tell: Callable[[str], None] = print, texts: int | None = None, steps: int | None = None
) -> tuple[Lab, dict[str, Any]]:
    """The fine-tuned classifier, and how it came about; `texts` of each split, all for None."""
    splits = {split: load_labelled(split=split) for split in ("train", "validation", "heldout")}
    if texts is not None:
        splits = {split: data.spread(texts) for split, data in splits.items()}
    train = splits["train"]
    model, tokenizer = text_classifier(len(train.classes))
    batches, validation, heldout = (tokenize(tokenizer, data) for data in splits.values())
    history = encoder_training.fine_tune(model, batches, validation, tell, steps)
    score = classifier_score(model, heldout)
    tell(f"fine-tuned: {score}")
    floors = encoder_training.floors(splits["train"], splits["heldout"])
    record = {
        "settings": asdict(encoder_training.settings(len(batches), steps)),
        "frozen_blocks": encoder_training.FROZEN_BLOCKS,
        "loss": [row["loss"] for row in history if "loss" in row],
        "validation": [
            {"step": row["step"], "macro_f1": row["macro_f1"]}
            for row in history
            if "macro_f1" in row
        ],
        "heldout": asdict(score),
        "floors": floors,
    }
    return Lab(model, tokenizer, train, batches, validation, heldout), record


def readme_block(result: dict[str, Any]) -> str:
    """The table of README: sizes, macro F1 on held-out modules, and how much of FP32's is kept."""
    whole = result["training"]["heldout"]["macro_f1"]
    lines = ["| weights | MB | macro F1 | kept |", "|---|---|---|---|"]
    rows = [("FP32", result["float_bytes"], whole)]
    rows += [(row["what"], row["bytes"], row["macro_f1"]) for row in result["allocations"]]
    for what, size, f1 in rows:
        lines.append(f"| {what} | {size / 1e6:.1f} | {f1:.3f} | {f1 / whole:.1%} |")
    lines += ["", "| trained with rounded weights | macro F1 | kept |", "|---|---|---|"]
    for row in result["qat"]:
        before, after = row["before"]["macro_f1"], row["after"]["macro_f1"]
        lines.append(f"| {row['what']} | {before:.3f} to {after:.3f} | {after / whole:.1%} |")
    return "\n".join(lines)
