"""Which part of the standard library does a docstring come from? A data set every learner has.

Twelve classes, each a package or a few modules on one subject. A module is in one split alone, so
held-out figures say what a classifier knows of the *subject*, not of a module's turns of phrase.
The table below fixes the splits by name: they are the same on Python 3.11 to 3.14, though the
docstrings themselves differ a little, and so do figures.

What would give the answer away is taken out of every text, of whatever class: the names of the
packages in the table and of the classes, alone ("email") or as part of an identifier
(`EmailMessage`, `http_open`). Words of the subject stay ("mail", "archive").
"""

from __future__ import annotations

import re
from functools import cache

from labkit.core.errors import CorpusError
from labkit.data import stdlib_text
from labkit.data.labelled import SPLITS, LabelledTexts

NAME = "docstring-topics"
_FEWEST_WORDS = 6
_MOST_WORDS = 40

# class -> modules of (train, validation, heldout). A package stands for all that no other entry
# names: "email" for email.parser, but not for email.message.
TOPICS: dict[str, tuple[str, str, str]] = {
    "archives": ("tarfile bz2 zipapp", "gzip", "zipfile lzma"),
    "asyncio": (
        "asyncio",
        "asyncio.futures asyncio.queues asyncio.protocols",
        "asyncio.locks asyncio.tasks asyncio.streams",
    ),
    "files": (
        "io os shutil posixpath ntpath glob fnmatch filecmp",
        "tempfile fileinput",
        "pathlib genericpath",
    ),
    "imports": (
        "importlib modulefinder",
        "importlib.resources runpy",
        "importlib.abc importlib.util pkgutil zipimport",
    ),
    "inspection": ("inspect bdb traceback dis", "code codeop trace", "pdb pstats profile cProfile"),
    "logging": ("logging", "logging.config", "logging.handlers"),
    "mail": (
        "email mailbox imaplib",
        "email.policy email._policybase poplib",
        "email.message email.headerregistry email.utils smtplib",
    ),
    "markup": ("xml", "xml.sax.saxutils xml.sax._exceptions html", "xml.dom"),
    "numbers": ("decimal random", "numbers", "statistics fractions"),
    "processes": (
        "multiprocessing threading concurrent",
        "multiprocessing.pool multiprocessing.shared_memory",
        "multiprocessing.managers queue",
    ),
    "testing": (
        "unittest doctest",
        "unittest.mock",
        "unittest.result unittest.loader unittest.suite unittest.runner unittest.util",
    ),
    "web": (
        "http urllib wsgiref xmlrpc socketserver ftplib",
        "http.server urllib.robotparser",
        "http.client urllib.parse xmlrpc.client wsgiref.headers",
    ),
}
CLASSES = tuple(TOPICS)
_PLACE = {
    module: (label, split)
    for label, splits in enumerate(TOPICS.values())
    for split, modules in zip(SPLITS, splits, strict=True)
    for module in modules.split()
}
_TELLTALE = {module.split(".")[0].lower() for module in _PLACE} | set(CLASSES)
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*\w|[A-Za-z_]")
_PIECES = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def load_docstring_topics(split: str = "train") -> LabelledTexts:
    """The docstrings of a split ("train", "validation" or "heldout"), and the class of each.

    A text that stands in more than one class is left out; one that stands in more than one split
    stays in the strictest alone.

    Raises:
        CorpusError: an unknown split, or a Python whose standard library has no sources.
    """
    if split not in SPLITS:
        raise CorpusError(f"unknown split {split!r}", NAME, f"Choose from {', '.join(SPLITS)}.")
    kept = [(text, *place) for text, place in _examples().items() if place[1] == split]
    if not kept:
        raise CorpusError(
            "this Python has no standard-library sources",
            str(stdlib_text.stdlib_root()),
            "Use a Python that comes with its .py files.",
        )
    texts, labels, _, modules = zip(*kept, strict=True)
    return LabelledTexts(NAME, split, texts, labels, CLASSES, modules)


@cache
def _examples() -> dict[str, tuple[int, str, str]]:
    """text -> (label, split, module), in the order of the files."""
    found: dict[str, tuple[int, str, str]] = {}
    ambiguous: set[str] = set()
    for unit, path in stdlib_text.source_files():
        parts = path.relative_to(stdlib_text.stdlib_root()).with_suffix("").parts
        module = ".".join((unit, *(part for part in parts[1:] if part != "__init__")))
        place = _place_of(module)
        if place is None:
            continue
        label, split = place
        for docstring in stdlib_text.docstrings(path.read_text(encoding="utf-8")):
            text = cleaned(docstring)
            if len(text.split()) < _FEWEST_WORDS:
                continue
            before = found.get(text)
            if before is not None and before[0] != label:
                ambiguous.add(text)
            if before is None or SPLITS.index(before[1]) < SPLITS.index(split):
                found[text] = (label, split, module)
    return {text: place for text, place in found.items() if text not in ambiguous}


def _place_of(module: str) -> tuple[int, str] | None:
    """(label, split) by the longest entry of the table that the module lies in."""
    while module:
        if module in _PLACE:
            return _PLACE[module]
        module = module.rpartition(".")[0]
    return None


def cleaned(docstring: str) -> str:
    """The first words of a docstring on one line, without the names that would give it away."""
    words = _IDENTIFIER.sub(lambda found: "" if _tells(found[0]) else found[0], docstring).split()
    return " ".join(words[:_MOST_WORDS])


def _tells(identifier: str) -> bool:
    for part in identifier.split("."):
        pieces = [piece.lower() for piece in _PIECES.findall(part)]
        if "".join(pieces) in _TELLTALE or not _TELLTALE.isdisjoint(pieces):
            return True
    return False
