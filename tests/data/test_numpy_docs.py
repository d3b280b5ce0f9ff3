"""NumPy's docstrings as a domain: split by what they describe, nothing long in two splits."""

import itertools

import pytest

from labkit.core.errors import CorpusError
from labkit.data import load_corpus, numpy_docs
from labkit.data.corpora import SPLITS, paragraphs, split_of
from labkit.data.numpy_docs import load_numpy_docs, unit_of


def test_each_split_has_text_and_a_stable_hash():
    smallest = {"train": 800_000, "calibration": 30_000, "heldout": 30_000}
    for split in SPLITS:
        corpus = load_numpy_docs(split)
        assert (corpus.name, corpus.split) == ("numpy-docs", split)
        assert len(corpus.text) > smallest[split]
        assert corpus.sha256 == load_numpy_docs(split).sha256
        assert len(set(corpus.documents)) == len(corpus.documents)


def test_no_long_paragraph_stands_in_two_splits():
    seen = {
        split: {
            key
            for text in load_numpy_docs(split).documents
            for piece in paragraphs(text)
            if len(key := " ".join(piece.split())) >= 80
        }
        for split in SPLITS
    }
    assert all(seen.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


def test_twins_lie_in_one_split():
    """numpy.sum, numpy.ma.sum and ndarray.sum quote one another."""
    names = ("numpy.sum", "numpy.ma.sum", "numpy.ndarray.sum")
    assert {unit_of(name) for name in names} == {"numpy sum"}
    wanted = {"numpy linspace": "heldout", "numpy take": "calibration", "numpy sum": "train"}
    assert {unit: split_of(unit) for unit in wanted} == wanted


def test_the_bundled_model_has_not_read_it():
    known = {key for name in ("stdlib-prose", "stdlib-code") for key in _long(name)}
    ours = {
        " ".join(piece.split())
        for split in SPLITS
        for text in load_numpy_docs(split).documents
        for piece in paragraphs(text)
    }
    assert len(ours) > 5000
    assert not {text for text in ours & known if len(text) >= 80}


def _long(name):
    texts = (text for split in SPLITS for text in load_corpus(name, split).documents)
    return (" ".join(piece.split()) for text in texts for piece in paragraphs(text))


def test_failures_say_what_to_do(monkeypatch):
    with pytest.raises(CorpusError, match="heldout"):
        load_numpy_docs("test")
    monkeypatch.setattr(numpy_docs, "_doc", lambda thing: "")
    numpy_docs._documents.cache_clear()
    with pytest.raises(CorpusError, match="-OO"):
        load_numpy_docs("train")
    monkeypatch.undo()
    assert load_numpy_docs("train").documents
