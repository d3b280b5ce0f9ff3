"""Perplexities by corpus: each is the figure of its own held-out text, read at the given window."""

import pytest

from labkit.core.errors import CorpusError
from labkit.data.corpora import BUNDLED, load_corpus
from labkit.evaluate.heldout import heldout_perplexities
from labkit.evaluate.perplexity import perplexity
from labkit.models.loading import load


@pytest.fixture(scope="module")
def bundled():
    return load()


def test_each_corpus_has_the_perplexity_of_its_heldout_text(bundled):
    got = heldout_perplexities(*bundled, BUNDLED, 32, 100)
    assert tuple(got) == BUNDLED
    for name, value in got.items():
        text = load_corpus(name, "heldout").text
        assert value == perplexity(*bundled, text, 32, max_tokens=100).value
    assert len(set(got.values())) == len(got)


def test_an_unknown_corpus_is_named(bundled):
    with pytest.raises(CorpusError, match="nowhere"):
        heldout_perplexities(*bundled, ("nowhere",), 32, 100)
