"""A pretrained encoder with a classifier on top: mean over the tokens, then one linear layer.

model, tokenizer = text_classifier(len(train.classes))
batches = tokenize(tokenizer, train)
logits = model(batches[0])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labkit.core.errors import CorpusError
from labkit.data.labelled import LabelledTexts
from labkit.models.encoder import load_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 48


@dataclass(frozen=True)
class TextBatch:
    """Texts as token ids int64 [rows, length]; `mask` is 1 for tokens, 0 for padding.

    labels: int64 [rows], or None where there are none.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor | None = None


class TextClassifier(nn.Module):
    """Encoder, mean over tokens, linear head.

    Args:
        encoder: a Hugging Face encoder; its states are [rows, length, hidden].
        classes: number of classes.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # a layer on top of the first token, which the mean does not use
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(next(encoder.parameters()).device)

    def forward(self, batch: TextBatch) -> Tensor:
        """Logits float32 [rows, classes]."""
        device = self.head.bias.device
        ids, mask = batch.ids.to(device), batch.mask.to(device)
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head(masked_mean(states, mask))

    # `labkit.training.prepare` finds the table and the head by these.
    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, table: nn.Module) -> None:
        self.encoder.set_input_embeddings(table)

    def get_output_embeddings(self) -> None:
        return None


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are no padding: [rows, length, hidden] to [rows, hidden]."""
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(dim=1) / kept.sum(dim=1)


def text_classifier(classes: int) -> tuple[TextClassifier, PreTrainedTokenizerBase]:
    """all-MiniLM-L6-v2 with a head that says nothing yet, and its tokenizer.

    Raises:
        ModelError: the package with the encoder is missing.
    """
    encoder, tokenizer = load_encoder()
    return TextClassifier(encoder, classes).eval(), tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    data: LabelledTexts,
    batch_size: int = 32,
    max_tokens: int = MAX_TOKENS,
) -> list[TextBatch]:
    """The data in batches of texts of like length, so that little is spent on padding.

    The order is that of length: shuffle the batches to train (`Epochs`). Texts are cut after
    `max_tokens` tokens.

    Raises:
        CorpusError: a batch size below 1, or room for no token between the two that every text has.
    """
    if batch_size < 1 or max_tokens < 3:
        raise CorpusError(
            f"batch_size {batch_size}, max_tokens {max_tokens}",
            "tokenize",
            "A batch holds at least 1 text, a text at least 3 tokens.",
        )
    ids = tokenizer(list(data.texts), truncation=True, max_length=max_tokens)["input_ids"]
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        padded = nn.utils.rnn.pad_sequence(
            [torch.tensor(ids[row]) for row in rows],
            batch_first=True,
            padding_value=tokenizer.pad_token_id or 0,
        )
        lengths = torch.tensor([len(ids[row]) for row in rows])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        batches.append(TextBatch(padded, mask, torch.tensor([data.labels[row] for row in rows])))
    return batches


class Epochs:
    """Step (from 0) to a batch: each epoch takes all batches in an order of its own.

    A function of the step alone, as `labkit.training.trainer.train` wants it.
    """

    def __init__(self, batches: list[TextBatch], seed: int = 0) -> None:
        self.batches, self.seed = batches, seed

    def __call__(self, step: int) -> TextBatch:
        epoch, place = divmod(step, len(self.batches))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.batches), generator=generator)
        return self.batches[int(order[place])]
