"""Calibration sets: token sequences of one length that show a quantizer what a layer sees.

Documents are joined and cut, none is dropped for being long or padded for being short: every
token is real text, and the number of sequences is the number that was asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError
from labkit.data.corpora import load_corpus


def calibration_set(
    tokenizer,
    corpus: str = "stdlib-code",
    sequences: int = 128,
    length: int = 256,
    seed: int = 0,
) -> Tensor:
    """`sequences` stretches of the corpus' calibration split: int64 [sequences, length].

    The whole split is tokenized and cut into stretches that do not overlap; `seed` chooses among
    them. `corpus` is a name that `load_corpus` knows or the path of a text file.

    Raises CorpusError for a corpus that is missing or empty; CalibrationError for a text shorter
    than one sequence, or with fewer sequences than asked for (it says how many there are).
    """
    documents = load_corpus(corpus, "calibration").documents
    return cut_sequences(tokenizer, documents, sequences, length, seed, where=corpus)


def cut_sequences(
    tokenizer,
    documents: tuple[str, ...] | list[str],
    sequences: int,
    length: int,
    seed: int = 0,
    where: str = "calibration text",
) -> Tensor:
    """As `calibration_set`, of the given documents, with the tokenizer's end mark between them."""
    if sequences < 1 or length < 2:
        raise CalibrationError(
            f"{sequences} sequences of {length} tokens",
            where=where,
            remedy="Ask for at least one sequence of at least two tokens.",
        )
    ids = _joined(tokenizer, documents)
    available = len(ids) // length
    if available < sequences:
        what = "is empty" if not ids else f"has {len(ids)} tokens"
        fit = "shorter than one sequence" if not available else f"{available} sequences, no more"
        raise CalibrationError(
            f"the text {what}: {fit}; {sequences} of {length} tokens were asked for",
            where=where,
            remedy="Give more text, or ask for fewer or shorter sequences.",
        )
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    stretches = torch.tensor(ids[: available * length], dtype=torch.int64).view(available, length)
    return stretches[order[:sequences]].clone()


def check_token_ids(ids: Tensor, vocabulary: int, positions: int | None = None) -> None:
    """Return if `ids` (int64 [sequences, length]) can enter a model.

    Args:
        vocabulary: rows of its embedding.
        positions: the longest sequence that it takes; None where nothing limits it.

    Raises CalibrationError: another shape or dtype, no tokens, ids beyond the vocabulary (the
    tokenizer is another model's), or sequences that are too long.
    """
    if ids.ndim != 2 or ids.dtype != torch.int64 or ids.numel() == 0:
        raise CalibrationError(
            f"token ids of shape {tuple(ids.shape)} and dtype {ids.dtype}",
            where="calibration",
            remedy="Give int64 [sequences, length], at least one token.",
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocabulary:
        wrong = int(((ids < 0) | (ids >= vocabulary)).sum())
        raise CalibrationError(
            f"{wrong} of {ids.numel()} token ids lie outside of 0..{vocabulary - 1} "
            f"(they span {lowest}..{highest})",
            where="calibration",
            remedy="Tokenize with the tokenizer that belongs to this model.",
        )
    if positions is not None and ids.shape[1] > positions:
        raise CalibrationError(
            f"sequences of {ids.shape[1]} tokens for a model of {positions} positions",
            where="calibration",
            remedy=f"Ask for a length of at most {positions}.",
        )


def check_vocabulary(ids: Tensor, model: nn.Module) -> None:
    """Return if `ids` (int64 [sequences, length]) can enter `model`.

    Raises CalibrationError as `check_token_ids` does.
    """
    config = model.config
    positions = getattr(config, "max_position_embeddings", None)
    check_token_ids(ids, model.get_input_embeddings().weight.shape[0], positions)


def _joined(tokenizer, documents: tuple[str, ...] | list[str]) -> list[int]:
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        # verbose=False: a document may be longer than the model's context, it will be cut.
        found = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if found:
            ids += found if end is None else [*found, end]
    return ids
