"""Texts with a class each: what a classifier is trained and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.core.errors import CorpusError

SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class LabelledTexts:
    """One split of a labelled data set.

    Args:
        name, split: where it comes from.
        texts: the examples, none of them empty.
        labels: for each text the index of its class in `classes`.
        classes: the names of the classes, at least two of which occur.
        sources: for each text what must never be in two splits (a module); () where unknown.

    Raises:
        CorpusError: no texts, an empty text, labels that are missing or name no class, or one
            class alone: there would be nothing to tell apart.
    """

    name: str
    split: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"{self.name}, split {self.split}"
        if not self.texts:
            raise CorpusError("no texts", where, "Give at least one example of each class.")
        if len(self.labels) != len(self.texts):
            raise CorpusError(
                f"{len(self.texts)} texts and {len(self.labels)} labels",
                where,
                "Give one label for each text.",
            )
        for index, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            if not isinstance(text, str) or not text.strip():
                raise CorpusError(
                    f"text {index} is empty", where, "Leave out examples without text."
                )
            self._require_class(index, label, where)
        if len(set(self.labels)) < 2:
            raise CorpusError(
                f"all {len(self.labels)} labels are {self.classes[self.labels[0]]!r}",
                where,
                "Give examples of at least two classes.",
            )

    def _require_class(self, index: int, label: object, where: str) -> None:
        whole = isinstance(label, int) and not isinstance(label, bool)
        if not whole or not 0 <= label < len(self.classes):
            raise CorpusError(
                f"the label of text {index} is {label!r}",
                where,
                f"Labels are class indices from 0 to {len(self.classes) - 1}; many data sets mark "
                "a hidden test label by -1: choose another split.",
            )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> LabelledTexts:
        """The chosen examples, in the order of `indices`."""
        return LabelledTexts(
            self.name,
            self.split,
            tuple(self.texts[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.classes,
            tuple(self.sources[i] for i in indices) if self.sources else (),
        )

    def spread(self, count: int) -> LabelledTexts:
        """`count` examples at equal distances (all of them where there are fewer)."""
        total = len(self)
        return self.take([i * total // count for i in range(count)]) if count < total else self


def load_labelled(name: str = "docstring-topics", split: str = "train", **columns: str):
    """One split of a labelled data set: "docstring-topics" (offline), or any of the hub's by name.

    `columns`: for a data set of the hub, `text_column`, `label_column` and `config`
    (`labkit.data.hub_labelled.load_hub_labelled`).

    Raises:
        CorpusError: an unknown split, or data that `LabelledTexts` refuses.
        OfflineError: a data set of the hub that cannot be had.
    """
    from labkit.data import docstring_topics, hub_labelled

    if split not in SPLITS:
        raise CorpusError(f"unknown split {split!r}", name, f"Choose from {', '.join(SPLITS)}.")
    if name == docstring_topics.NAME:
        return docstring_topics.load_docstring_topics(split)
    return hub_labelled.load_hub_labelled(name, split, **columns)
