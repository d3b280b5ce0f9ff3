"""A Hugging Face tokenizer as the metadata of a GGUF file.

Two kinds of tokenizer, by llama.cpp's names for them:

    gpt2     byte-level BPE: the text is cut into words, the bytes of a word are written as 256
             printable letters, and pairs are merged in the order of a list (GPT-2, Llama 3, Qwen)
    llama    SentencePiece's BPE: spaces become ▁, pairs are merged in the order of their scores,
             and a letter that is no token falls back to its bytes (Llama 2, Mistral, Gemma, Phi-3)

What llama.cpp leaves out: Unicode normalization (NFC in Qwen's), spaces that a special token takes
with it (lstrip, rstrip), and the difference between a space before the first word and one after
every special token (Metaspace's "first"). Texts that touch one of these may be cut differently.
Source: llama-vocab.cpp, of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.core.errors import FormatError
from labkit.formats.gguf.pieces import piece_scores, prepends_space
from labkit.formats.gguf.pre_tokenizers import pre_tokenizer_of
from labkit.formats.gguf.values import Kind, Value, array, boolean, string
from labkit.formats.gguf.vocabulary import (
    ADD_SPACE_PREFIX,
    MERGES,
    MODEL,
    PRE,
    SCORES,
    TOKENS,
    TYPES,
    Vocabulary,
    special_tokens,
    tokenizer_json,
    vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_metadata(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, Value]:
    """The metadata by which llama.cpp tokenizes as ``tokenizer`` does.

    Args:
        tokenizer: a fast tokenizer.
        vocab_size: rows of the model's embedding; rows without a token are filled up.

    Raises:
        FormatError: llama.cpp has no tokenizer that works so: its part is named.
    """
    content = tokenizer_json(tokenizer)
    model = content["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix"):
        raise _refused(f"a tokenizer of the type {model.get('type')!r}")
    if model.get("end_of_word_suffix"):
        raise _refused("a BPE that marks the ends of words")
    words = vocabulary(content, vocab_size)
    if model.get("byte_fallback"):
        unknown = getattr(tokenizer, "unk_token", None) or model.get("unk_token")
        return _sentence_piece(content, words, unknown) | special_tokens(tokenizer)
    return _byte_level(content, words) | special_tokens(tokenizer)


def _byte_level(content: dict[str, Any], words: Vocabulary) -> dict[str, Value]:
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer["type"] not in ("NFC", "Sequence"):
        raise _refused(f"the normalizer {normalizer['type']!r}")
    if normalizer is not None and normalizer.get("normalizers"):
        raise _refused(f"the normalizers {str(normalizer['normalizers'])[:100]}")
    rule = pre_tokenizer_of(content)
    if (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise _refused("a BPE without byte fallback that is not byte-level")
    return {
        MODEL: string("gpt2"),
        PRE: string(rule.name),
        **_tokens(words),
        MERGES: array(Kind.STRING, [_merge(pair) for pair in content["model"]["merges"]]),
    }


def _sentence_piece(
    content: dict[str, Any], words: Vocabulary, unknown: str | None
) -> dict[str, Value]:
    scores, types = piece_scores(content["model"], words, unknown)
    return {
        MODEL: string("llama"),
        PRE: string("default"),
        **_tokens(Vocabulary(words.texts, types, words.added)),
        SCORES: array(Kind.FLOAT32, scores),
        ADD_SPACE_PREFIX: boolean(prepends_space(content)),
    }


def _tokens(words: Vocabulary) -> dict[str, Value]:
    return {TOKENS: array(Kind.STRING, words.texts), TYPES: array(Kind.INT32, words.types)}


def _merge(pair: str | list[str]) -> str:
    """A merge as "left right"; tokenizer.json has it so, or as a pair."""
    if isinstance(pair, str):
        return pair
    if any(" " in half for half in pair):
        raise _refused(f"the merge {pair!r}, which holds a space")
    return " ".join(pair)


def _refused(what: str) -> FormatError:
    return FormatError(
        what,
        where="tokenizer.json",
        remedy="labkit writes byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece's BPE with"
        " byte fallback (Llama 2, Mistral, Gemma) into GGUF.",
    )
