"""Any labelled data set of the Hugging Face hub, in the shape of our own: only when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from labkit.core.errors import CorpusError, OfflineError
from labkit.data.labelled import LabelledTexts

# Our split -> theirs, the first that exists. Some have no validation split, some no labelled test.
_THEIRS = {
    "train": ("train",),
    "validation": ("validation", "train[90%:]"),
    "heldout": ("test", "validation"),
}


def load_hub_labelled(
    name: str,
    split: str,
    *,
    text_column: str = "text",
    label_column: str = "label",
    config: str = "",
) -> LabelledTexts:
    """A split of the data set `name` ("SetFit/20_newsgroups", "fancyzhx/ag_news", ...).

    Where it has no validation split, the last tenth of its training data stands for it, and is
    left out of training.

    Raises:
        OfflineError: it is neither cached nor reachable, or the `datasets` package is missing.
        CorpusError: no such split or column, or rows that `LabelledTexts` refuses.
    """
    try:
        import datasets
    except ImportError as error:
        raise OfflineError(
            f"{name!r} comes from the hub and needs a package: pip install 'labkit[hub]'"
        ) from error
    options = [config] if config else []
    try:
        existing = datasets.get_dataset_split_names(name, *options)
        theirs = _choose(name, split, existing)
        rows = datasets.load_dataset(name, *options, split=theirs)
    except (OSError, ConnectionError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise OfflineError(
            f"data set {name!r} is neither cached nor reachable: {error}. "
            "Offline, use 'docstring-topics'."
        ) from error
    return from_rows(
        name,
        split,
        rows,
        text_column,
        label_column,
        getattr(rows.features[label_column], "names", None),
    )


def from_rows(
    name: str,
    split: str,
    rows: Iterable[Mapping[str, Any]],
    text_column: str = "text",
    label_column: str = "label",
    classes: Iterable[str] | None = None,
) -> LabelledTexts:
    """Rows with a text and a label (a class index, or its name) as `LabelledTexts`.

    `classes`: the names; None to number the labels that occur, in sorted order.

    Raises:
        CorpusError: a row without one of the columns, or what `LabelledTexts` refuses.
    """
    texts, labels = [], []
    for row in rows:
        for column in (text_column, label_column):
            if column not in row:
                raise CorpusError(
                    f"no column {column!r}",
                    f"{name}, split {split}",
                    f"It has {', '.join(map(str, row))}; say which holds what.",
                )
        texts.append(row[text_column])
        labels.append(row[label_column])
    names = tuple(classes) if classes is not None else tuple(sorted({str(x) for x in labels}))
    if classes is None:
        number = {label: index for index, label in enumerate(names)}
        labels = [None if label is None else number[str(label)] for label in labels]
    return LabelledTexts(name, split, tuple(texts), tuple(labels), names)


def _choose(name: str, split: str, existing: list[str]) -> str:
    if split == "train" and "validation" not in existing and "train" in existing:
        return "train[:90%]"
    for theirs in _THEIRS[split]:
        if theirs.partition("[")[0] in existing:
            return theirs
    raise CorpusError(
        f"no split for {split!r}", name, f"It has {', '.join(existing) or 'no splits at all'}."
    )
