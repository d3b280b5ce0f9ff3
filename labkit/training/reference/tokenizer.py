"""Byte-level BPE for the bundled model: digits stand alone, so that sums can be learned.

The pre-tokenizer is digits one by one, then GPT-2's expression; llama.cpp knows that pair under
the name "smollm".
"""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from labkit.data.corpora import BUNDLED, load_corpus
from labkit.data.tasks import TASKS, training_session

BOS = "<|endoftext|>"
_TASK_SESSIONS = 3000  # of each task: enough for its words to become one token each


def _texts() -> list[str]:
    texts = [text for name in BUNDLED for text in load_corpus(name, "train").documents]
    for name in TASKS:
        rng = random.Random(f"tokenizer {name}")
        for _ in range(_TASK_SESSIONS):
            turns = training_session(name, rng)
            texts.append("".join(turn.prompt + turn.answer for turn in turns))
    return texts


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on the training split and sample sessions. `tokenizer(text)` puts BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
