"""Batches of text: the same for a step, of every corpus in turn, real stretches of it."""

from __future__ import annotations

import pytest
import torch

from labkit.core.errors import CorpusError
from labkit.data import load_corpus
from labkit.models import bundled_folder
from labkit.training.text_batches import TextBatches


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundled_folder(), local_files_only=True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    for name, word in (("a", "alpha"), ("b", "beta")):
        lines = [f"{word} {number}" for number in range(300)]
        (folder / name).write_text("\n\n".join(lines))
    return [str(folder / name) for name in "ab"]


def test_a_step_has_its_batch_and_corpora_take_turns(tokenizer, texts):
    batches = TextBatches(tokenizer, texts, rows=3, length=12, seed=1)
    assert torch.equal(batches(5), TextBatches(tokenizer, texts, 3, 12, seed=1)(5))
    assert not torch.equal(batches(5), batches(6))
    assert not torch.equal(batches(5), TextBatches(tokenizer, texts, 3, 12, seed=2)(5))
    rows = [tokenizer.decode(row) for step in (0, 1) for row in batches(step)]
    assert ["beta" in row for row in rows] == [False, True] * 3
    assert batches(0).shape == (3, 13) and batches(0).dtype == torch.int64


def test_rows_are_stretches_of_the_training_split(tokenizer, texts):
    batches = TextBatches(tokenizer, texts[:1], rows=8, length=12)
    stream = batches.streams[0]
    windows = {tuple(window.tolist()) for window in stream.unfold(0, 13, 1)}
    assert all(tuple(row.tolist()) in windows for step in range(5) for row in batches(step))
    lines = load_corpus(texts[0], "heldout").text.split("\n\n")
    assert not set(lines) & set(tokenizer.decode(stream).split("\n\n"))


def test_failures_say_what_to_do(tokenizer, texts):
    with pytest.raises(CorpusError, match="at least one corpus"):
        TextBatches(tokenizer, [])
    with pytest.raises(CorpusError, match="Give more text"):
        TextBatches(tokenizer, texts, length=100_000)
    with pytest.raises(CorpusError, match="no corpus named"):
        TextBatches(tokenizer, ["/nowhere"])
