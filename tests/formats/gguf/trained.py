"""Small tokenizers of every kind, trained on a few lines, and llama.cpp's own on a file."""

from __future__ import annotations

import ctypes
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import llama_cpp
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from labkit.formats.gguf import layout
from labkit.formats.gguf import pre_tokenizers as rules
from labkit.formats.gguf.values import Value, string
from labkit.formats.gguf.writer import GgufWriter

SPECIAL = ["<unk>", "<s>", "</s>"]
LINES = [
    *inspect.getsource(json).splitlines(),
    *inspect.getsource(layout).splitlines(),
    "  Zoë trägt 12 345 Äpfel, 3.14 and 2024; don't, WE'LL, it's I'M they'RE",
    "Привет, мир! Ёжик 東京は日本の首都です。 안녕하세요 세계 नमस्ते दुनिया مرحبا بالعالم",
    "emoji: 🚀🦙 😶\u200d🌫️ ✅ naïve café ﬁne … — “quoted” «guillemets»",
]


def byte_level(
    pattern: str | None = rules.QWEN2,
    *,
    ignore_merges: bool = False,
    template: str = "",
    size: int = 600,
    digits: bool = False,
    **special: str,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts by a pattern; by GPT-2's own step where it is None."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<|bos|>", "<|eos|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens(["<tool>", "  <indent>"])
    _frame(tokenizer, template)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def sentence_piece(
    space: str = "prefix", *, template: str = "<s> $A", size: int = 700
) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE as Llama's (space="prefix"), Mistral's ("first") or Gemma's ("none")
    tokenizer.json has it."""
    pieces = _trained_pieces(size)
    letters = sorted({letter for piece in pieces for letter in piece})
    order = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    vocab = {piece: number for number, piece in enumerate(order)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    replace = normalizers.Replace(" ", "▁")
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space == "prefix":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif space == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    if space != "none":
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_special_tokens(SPECIAL)
    # As published tokenizers have them: looked for in the text as it is.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool>", " " * 12)])
    _frame(tokenizer, template)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def vocabulary_file(path: Path, metadata: dict[str, Value]) -> Path:
    """A GGUF file without tensors, as llama.cpp reads it for its tokenizer alone."""
    with GgufWriter(path, {"general.architecture": string("llama")} | metadata, [], force=True):
        pass
    return path


def llama_tokenizer(path: Path) -> Callable[..., list[int]]:
    """llama.cpp's own tokenization with the vocabulary of a file: f(text, add_special=True)."""
    _quiet()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp refuses {path}"
    vocab = llama_cpp.llama_model_get_vocab(model)

    def tokens(text: str, add_special: bool = True) -> list[int]:
        content = text.encode()
        room = (llama_cpp.llama_token * (len(content) + 16))()
        count = llama_cpp.llama_tokenize(
            vocab, content, len(content), room, len(room), add_special, True
        )
        assert count >= 0
        return list(room[:count])

    return tokens


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def _quiet() -> None:
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p())


def _trained_pieces(size: int) -> list[str]:
    """What merging makes of the lines, in order, and runs of spaces as Llama has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(LINES, BpeTrainer(vocab_size=size, show_progress=False))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return ["▁▁", "▁▁▁▁", "▁▁▁", *dict.fromkeys("".join(pair) for pair in merges)]


def _frame(tokenizer: Tokenizer, template: str) -> None:
    """Tokens before and after a text, as "<s> $A"."""
    if template:
        names = [name for name in template.split() if name != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
        )
