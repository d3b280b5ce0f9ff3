"""NumPy's docstrings: a domain that every learner has and the bundled model has never read.

The model was trained on the standard library; these pages have other words (axis, array_like,
dtype), another markup and printed arrays. So they are what a fine-tuning has to teach it.

A document is one docstring. Its unit is the bare name that it describes, so that `numpy.sum`,
`numpy.ma.sum` and `ndarray.sum`, which quote one another, lie in one split; paragraphs that stand
in a stricter split all the same are left out of the other ones. The text is that of the NumPy that
is installed: another version has other pages, and figures compare within one version alone.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import cache

from labkit.core.errors import CorpusError
from labkit.data.corpora import SPLITS, Corpus, paragraphs, split_of

NAME = "numpy-docs"
MODULES = (
    "numpy",
    "numpy.linalg",
    "numpy.fft",
    "numpy.random",
    "numpy.polynomial",
    "numpy.ma",
    "numpy.char",
)
FEWEST_WORDS = 30  # less is a reference to another page
_LONG = 80  # characters of a paragraph that is not the same by chance


def load_numpy_docs(split: str = "train") -> Corpus:
    """One split ("train", "calibration" or "heldout") of the docstrings.

    Raises:
        CorpusError: an unknown split, or docstrings that this Python does not keep (-OO).
    """
    if split not in SPLITS:
        raise CorpusError(f"unknown split {split!r} of {NAME}; choose from {SPLITS}")
    documents = _documents()
    stricter = SPLITS[SPLITS.index(split) + 1 :]
    banned = {key for s in stricter for text in documents[s] for key in _long_paragraphs(text)}
    kept = dict.fromkeys(_without(text, banned) for text in documents[split])
    return Corpus(NAME, split, tuple(text for text in kept if text))


@cache
def _documents() -> dict[str, tuple[str, ...]]:
    """Split to its docstrings, by the name of what they describe; each text once."""
    texts: dict[str, str] = {}
    for name, text in _docstrings():
        if len(text.split()) >= FEWEST_WORDS:
            texts.setdefault(text, name)
    if len(texts) < 200:
        raise CorpusError(
            f"{len(texts)} docstrings found in NumPy",
            where=NAME,
            remedy="Run Python without -OO (PYTHONOPTIMIZE), which drops them.",
        )
    return {
        split: tuple(text for text, name in texts.items() if split_of(unit_of(name)) == split)
        for split in SPLITS
    }


def unit_of(name: str) -> str:
    """What is split as one: "numpy sum" for numpy.sum, numpy.ma.sum and numpy.ndarray.sum."""
    return f"numpy {name.rsplit('.', 1)[-1].lower()}"


def _docstrings() -> Iterator[tuple[str, str]]:
    """(full name, docstring) of what the modules declare public, and of its public members."""
    for module in map(importlib.import_module, MODULES):
        # From the dictionary: names that NumPy only keeps to warn about them are not in it.
        found = vars(module)
        for name in sorted(set(module.__all__) & set(found)):
            thing = found[name]
            if inspect.ismodule(thing):
                continue
            yield f"{module.__name__}.{name}", _doc(thing)
            members = vars(thing) if inspect.isclass(thing) else {}
            for member in sorted(m for m in members if not m.startswith("_")):
                yield f"{module.__name__}.{name}.{member}", _doc(members[member])


def _doc(thing: object) -> str:
    text = getattr(thing, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _long_paragraphs(text: str) -> set[str]:
    return {key for piece in paragraphs(text) if len(key := _key(piece)) >= _LONG}


def _without(text: str, banned: set[str]) -> str:
    return "\n\n".join(piece for piece in paragraphs(text) if _key(piece) not in banned)
