"""Calibration sets: as many tokens as asked for, all of them text, or an error that says why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny

from labkit.core.errors import CalibrationError, CorpusError
from labkit.data.calibration import (
    calibration_set,
    check_token_ids,
    check_vocabulary,
    cut_sequences,
)


class Letters:
    """One token a letter; 0 is the end mark."""

    eos_token_id: int | None = 0

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


class NoEnd(Letters):
    eos_token_id = None


@given(
    documents=st.lists(st.text("abc", min_size=1, max_size=40), min_size=1, max_size=8),
    length=st.integers(2, 9),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_sequences_are_distinct_stretches_of_the_text(
    documents: list[str], length: int, seed: int
) -> None:
    joined = [ord(c) for document in documents for c in [*document, "\0"]]
    available = len(joined) // length
    if not available:
        with pytest.raises(CalibrationError, match="shorter than one sequence"):
            cut_sequences(Letters(), documents, 1, length, seed)
        return
    ids = cut_sequences(Letters(), documents, available, length, seed)
    assert ids.shape == (available, length) and ids.dtype == torch.int64
    expected = [joined[i * length : (i + 1) * length] for i in range(available)]
    assert sorted(ids.tolist()) == sorted(expected)
    with pytest.raises(CalibrationError, match=f"{available} sequences, no more"):
        cut_sequences(Letters(), documents, available + 1, length, seed)


def test_seed_chooses_and_a_shorter_list_is_a_beginning_of_the_longer() -> None:
    text = ["".join(chr(97 + i % 26) for i in range(400))]
    many, few = (cut_sequences(Letters(), text, n, 7, 1) for n in (40, 10))
    assert torch.equal(many[:10], few)
    assert not torch.equal(cut_sequences(Letters(), text, 10, 7, 2), few)


def test_long_documents_are_cut_not_dropped_and_no_end_mark_is_invented() -> None:
    ids = cut_sequences(NoEnd(), ["a" * 1000, "", "b" * 1000], 20, 100)
    assert (ids == 97).sum() == 1000 and (ids == 98).sum() == 1000


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_an_empty_text_is_refused(documents: list[str]) -> None:
    with pytest.raises(CalibrationError, match="is empty"):
        cut_sequences(Letters(), documents, 1, 4)


@pytest.mark.parametrize(("sequences", "length"), [(0, 8), (-1, 8), (1, 1), (1, 0)])
def test_no_sequences_or_no_length_is_refused(sequences: int, length: int) -> None:
    with pytest.raises(CalibrationError, match="at least one sequence"):
        cut_sequences(Letters(), ["abcdef"], sequences, length)


def test_a_corpus_file_gives_its_calibration_split(tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{chr(97 + i % 26) * 50}" for i in range(100)))
    ids = calibration_set(NoEnd(), str(path), sequences=4, length=50)
    assert ids.shape == (4, 50)
    # 8 of 100 paragraphs: the numbers 84 to 91, each a letter of its own.
    assert set(ids.unique().tolist()) <= {97 + i % 26 for i in range(84, 92)}


def test_missing_empty_and_short_corpora(tmp_path) -> None:
    with pytest.raises(CorpusError, match="no corpus named"):
        calibration_set(Letters(), "nowhere")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(CorpusError, match="no text"):
        calibration_set(Letters(), str(empty))
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join("abc" for _ in range(20)))
    with pytest.raises(CalibrationError, match=r"short\.txt.*shorter than one sequence"):
        calibration_set(Letters(), str(short), sequences=1, length=256)


def test_the_bundled_corpora_with_the_bundled_tokenizer() -> None:
    from transformers import AutoTokenizer

    from labkit.models import bundled_folder

    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    ids = calibration_set(tokenizer, "stdlib-prose", sequences=16, length=64)
    assert ids.shape == (16, 64) and len(ids.unique(dim=0)) == 16
    assert torch.equal(ids, calibration_set(tokenizer, "stdlib-prose", sequences=16, length=64))


def test_ids_of_another_vocabulary_are_refused() -> None:
    model = tiny("llama")
    check_vocabulary(torch.full((2, 8), 127), model)
    with pytest.raises(CalibrationError, match=r"1 of 16 token ids lie outside of 0\.\.127"):
        check_vocabulary(torch.tensor([[5] * 15 + [128]]).view(2, 8), model)
    with pytest.raises(CalibrationError, match=r"span -1\.\.5"):
        check_vocabulary(torch.tensor([[-1, 5]]), model)
    with pytest.raises(CalibrationError, match="65 tokens for a model of 64 positions"):
        check_vocabulary(torch.zeros(1, 65, dtype=torch.int64), model)


@pytest.mark.parametrize(
    "ids", [torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4), torch.zeros(0, 4).long()]
)
def test_what_is_no_batch_of_ids_is_refused(ids: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="Give int64"):
        check_token_ids(ids, 10)
