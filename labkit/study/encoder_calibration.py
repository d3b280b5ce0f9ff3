"""The study's question about calibration: does it matter which texts set the ranges of inputs?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from labkit.core.observers import MinMaxObserver, PercentileObserver
from labkit.data.labelled import LabelledTexts
from labkit.evaluate.classification import damage, labels_of, logits_of, score_logits
from labkit.models.mixed_precision import (
    choosable_layers,
    doubles_of,
    static_inputs,
    with_choices,
    with_static_inputs,
)
from labkit.models.text_classifier import tokenize

if TYPE_CHECKING:
    from labkit.study.encoder import Lab

TEXTS = 128
OBSERVERS = {"min-max": MinMaxObserver, "percentile 99.9": partial(PercentileObserver, 99.9)}


def generic_texts() -> list[str]:
    """English that has nothing to do with the task: how scikit-learn describes its data sets."""
    from sklearn import datasets

    loaders = (
        datasets.load_iris,
        datasets.load_wine,
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_digits,
        datasets.load_linnerud,
    )
    whole = "\n".join(load().DESCR for load in loaders)
    words = whole.split()
    return [" ".join(words[start : start + 15]) for start in range(0, len(words) - 15, 15)]


def measure(lab: Lab, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """W8A8 with static inputs: texts of the task, few of them, generic ones; two kinds of range."""
    doubles = {name: doubles_of(layer) for name, layer in choosable_layers(lab.model).items()}
    plain = with_choices(lab.model, doubles, dict.fromkeys(doubles, "int8"))
    generic = generic_texts()[:TEXTS]
    unlabelled = LabelledTexts(
        "generic",
        "calibration",
        tuple(generic),
        tuple(i % 2 for i in range(len(generic))),
        ("", ""),
    )
    sets = {
        "domain": tokenize(lab.tokenizer, lab.train.spread(TEXTS)),
        "domain, 8 texts": tokenize(lab.tokenizer, lab.train.spread(8)),
        "generic": tokenize(lab.tokenizer, unlabelled),
    }
    exact, labels = logits_of(lab.model, lab.heldout), labels_of(lab.heldout)
    rows = []
    for kind, batches in sets.items():
        for ranges, observer in OBSERVERS.items():
            model = with_static_inputs(plain, static_inputs(plain, batches, observer))
            logits = logits_of(model, lab.heldout)
            row = {"calibrated_on": kind, "ranges": ranges, **asdict(score_logits(logits, labels))}
            rows.append({**row, **asdict(damage(exact, logits, labels))})
            tell(f"W8A8, {kind}, {ranges}: F1 {row['macro_f1']:.3f}, KL {rows[-1]['kl']:.4f}")
    return rows
