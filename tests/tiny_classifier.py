"""A classifier on an encoder of two small blocks, and texts that it can learn."""

import torch
from transformers import BertConfig, BertModel

from labkit.data.labelled import LabelledTexts
from labkit.models.text_classifier import TextClassifier

WORDS = ("red", "green", "blue", "cat", "dog", "cow")


class Tokenizer:
    """One id a word; 1 and 2 stand around each text."""

    pad_token_id = 0

    def __call__(self, texts, truncation, max_length):
        rows = [[3 + WORDS.index(word) for word in text.split()] for text in texts]
        return {"input_ids": [[1, *row[: max_length - 2], 2] for row in rows]}


def small_classifier(classes=2):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = TextClassifier(BertModel(config), classes).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def colours_or_animals(count=48):
    generator = torch.Generator().manual_seed(1)
    texts, labels = [], []
    for index in range(count):
        kind = index % 2
        length = int(torch.randint(1, 9, (), generator=generator))
        picks = torch.randint(3, (length,), generator=generator) + 3 * kind
        texts.append(" ".join(WORDS[pick] for pick in picks))
        labels.append(kind)
    return LabelledTexts("toy", "train", tuple(texts), tuple(labels), ("colour", "animal"))
