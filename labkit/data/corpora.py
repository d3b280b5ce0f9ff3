"""Text to train on, to calibrate with and to measure on, split so that nothing leaks.

Two domains come from the learner's own Python (`stdlib-prose`, `stdlib-code`). A unit (a module,
a reference topic) belongs to one split by the hash of its name. The reference topics quote one
another, so paragraphs that stand in an evaluation split are also removed from the training split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from labkit.core.errors import CorpusError
from labkit.data import stdlib_text
from labkit.data.hub_corpora import HUB_CORPORA, load_hub_corpus

SPLITS = ("train", "calibration", "heldout")
BUNDLED = ("stdlib-prose", "stdlib-code")
_FEWEST_PARAGRAPHS = 12


@dataclass(frozen=True)
class Corpus:
    """A named text: `documents` in order, joined as `text`, with the hash of that text."""

    name: str
    split: str
    documents: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.documents)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def split_of(unit: str) -> str:
    """The split of a unit, from the hash of its name: 8 % held out, 8 % calibration.

    Raises nothing; the same on every machine and Python version.
    """
    bucket = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:4], "big") % 100
    if bucket < 8:
        return "heldout"
    return "calibration" if bucket < 16 else "train"


def load_corpus(name: str, split: str = "train") -> Corpus:
    """Load one split of a corpus.

    `name` is "stdlib-prose" or "stdlib-code" (offline, from the running Python), "wikitext2" or
    "c4" (from the Hugging Face hub, needs a network or a filled cache and the `datasets`
    package), or the path of a UTF-8 text file (its paragraphs are split by position). `split` is
    "train", "calibration", "heldout", or "all" of them.

    Raises CorpusError for an unknown name or split, and for a file that is empty or not UTF-8;
    OfflineError when a hub corpus cannot be had.
    """
    if split not in (*SPLITS, "all"):
        raise CorpusError(
            f"unknown split {split!r} of corpus {name!r}; choose from {SPLITS} or all"
        )
    path = Path(name).expanduser()
    if name in BUNDLED:
        load: Callable[[str], tuple[str, ...]] = partial(_stdlib, name)
    elif name in HUB_CORPORA:
        load = partial(load_hub_corpus, name)
    elif path.is_file():
        pieces = _paragraphs_of(path)
        if split == "all":
            return Corpus(name, split, pieces)
        load = partial(_split_by_position, path, pieces)
    else:
        raise CorpusError(
            f"no corpus named {name!r} and no file of that name; choose from "
            f"{', '.join([*BUNDLED, *HUB_CORPORA])}, or give the path of a text file"
        )
    wanted = SPLITS if split == "all" else (split,)
    return Corpus(name, split, tuple(text for one in wanted for text in load(one)))


@cache
def _stdlib(name: str, split: str) -> tuple[str, ...]:
    """Documents of a split, without the paragraphs that a stricter split also has.

    Held-out text is never touched; calibration gives way to it, training to both. Only the files
    of the splits that are needed are parsed.
    """
    documents = _raw(name, split)
    banned = {
        key
        for stricter in SPLITS[SPLITS.index(split) + 1 :]
        for text in _raw(name, stricter)
        for key in _paragraph_keys(text)
    }
    kept = (_without_paragraphs(text, banned) for text in documents)
    return tuple(text for text in kept if text.strip())


@cache
def _raw(name: str, split: str) -> tuple[str, ...]:
    make = _prose_documents if name == "stdlib-prose" else _code_documents
    return tuple(make(split))


def _files(split: str) -> Iterator[str]:
    for unit, path in stdlib_text.source_files():
        if split_of(unit) == split:
            yield path.read_text(encoding="utf-8")


def _prose_documents(split: str) -> Iterator[str]:
    for key, text in stdlib_text.topics().items():
        if split_of(f"topic {key}") == split:
            yield text.strip()
    for source in _files(split):
        long_ones = [text for text in stdlib_text.docstrings(source) if len(text.split()) >= 8]
        if long_ones:
            yield "\n\n".join(long_ones)


def _code_documents(split: str) -> Iterator[str]:
    for source in _files(split):
        text = stdlib_text.code_without_docstrings(source)
        if len(text) >= 200:
            yield text


def paragraphs(text: str) -> list[str]:
    """Pieces between blank lines."""
    return [piece for piece in re.split(r"\n\s*\n", text) if piece.strip()]


def _key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _paragraph_keys(text: str) -> set[str]:
    """Paragraphs long enough (80 characters) for a match not to be chance."""
    return {key for piece in paragraphs(text) if len(key := _key(piece)) >= 80}


def _without_paragraphs(text: str, banned: set[str]) -> str:
    pieces = paragraphs(text)
    kept = [piece for piece in pieces if _key(piece) not in banned]
    return text if len(kept) == len(pieces) else "\n\n".join(kept)


def _paragraphs_of(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error
    pieces = tuple(paragraphs(text))
    if not pieces:
        raise CorpusError(f"{path} holds no text; give a file with at least one paragraph")
    return pieces


def _split_by_position(path: Path, pieces: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The first 84 % of the paragraphs train, the next 8 % calibrate, the last 8 % are held out."""
    if len(pieces) < _FEWEST_PARAGRAPHS:
        raise CorpusError(
            f"{path} has {len(pieces)} paragraphs, too few to split into train, calibration and "
            f"held-out (at least {_FEWEST_PARAGRAPHS}); ask for split='all' to use the whole file"
        )
    first, second = round(len(pieces) * 0.84), round(len(pieces) * 0.92)
    cut = {"train": (0, first), "calibration": (first, second), "heldout": (second, len(pieces))}
    start, end = cut[split]
    return pieces[start:end]
