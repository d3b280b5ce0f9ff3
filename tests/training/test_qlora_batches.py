"""Batches of documents: windows of the text, a function of seed and step."""

import pytest
import torch

from labkit.core.errors import CorpusError
from labkit.models import load
from labkit.training.qlora_batches import document_batches


@pytest.fixture(scope="module")
def tokenizer():
    return load()[1]


def test_windows_are_of_the_text_and_repeat_for_a_seed(tokenizer):
    documents = [f"Document {n} holds the number {n * n}." for n in range(40)]
    batch = document_batches(tokenizer, documents, rows=3, length=20)
    first = batch(0)
    assert first.shape == (3, 21) and first.dtype == torch.int64
    whole = "".join(tokenizer.decode(tokenizer(text)["input_ids"]) for text in documents)
    assert all(tokenizer.decode(row) in whole for row in first.tolist())
    assert torch.equal(first, document_batches(tokenizer, documents, rows=3, length=20)(0))
    assert not torch.equal(first, batch(1))
    assert not torch.equal(first, document_batches(tokenizer, documents, 3, 20, seed=1)(0))


def test_a_text_of_one_window_has_one(tokenizer):
    ids = tokenizer("one two three four")["input_ids"]
    only = document_batches(tokenizer, ["one two three four"], rows=2, length=len(ids) - 1)(5)
    assert only.tolist() == [ids, ids]


@pytest.mark.parametrize(("documents", "rows"), [([], 2), (["one"], 2), (["one " * 99], 0)])
def test_too_little_is_refused(tokenizer, documents, rows):
    with pytest.raises(CorpusError, match="tokens for"):
        document_batches(tokenizer, documents, rows=rows, length=64)
