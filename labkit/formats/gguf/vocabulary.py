"""What both kinds of tokenizer have in a GGUF file: tokens, their types, and the special ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from labkit.core.errors import FormatError
from labkit.formats.gguf.values import Value, boolean, string, u32

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = "tokenizer.ggml.model"
PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"
SCORES = "tokenizer.ggml.scores"
MERGES = "tokenizer.ggml.merges"
ADD_BOS = "tokenizer.ggml.add_bos_token"
ADD_EOS = "tokenizer.ggml.add_eos_token"
ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
CHAT_TEMPLATE = "tokenizer.chat_template"

# Role in transformers -> key in the file; GGUF spells the separator so.
ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}


class TokenType(IntEnum):
    """llama.cpp's types of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # special: met in a text only where special tokens are asked for
    USER_DEFINED = 4  # found in every text before it is cut
    UNUSED = 5
    BYTE = 6


@dataclass
class Vocabulary:
    """The tokens of a model by their numbers.

    Args:
        texts: one for each row of the embedding.
        types: as many.
        added: numbers of the tokens that are found in a text before it is cut.
    """

    texts: list[str]
    types: list[TokenType]
    added: set[int]


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of the tokenizer.json that a fast tokenizer is.

    Raises:
        FormatError: it is no fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise FormatError(
            f"{type(tokenizer).__name__} has no tokenizer.json",
            where="tokenizer",
            remedy="Load its fast version: AutoTokenizer.from_pretrained(..., use_fast=True).",
        )
    return json.loads(backend.to_str())


def vocabulary(content: dict[str, Any], vocab_size: int) -> Vocabulary:
    """The tokens of a tokenizer.json, filled up to the rows of the embedding.

    Args:
        vocab_size: rows of the embedding; those without a token are called [PAD17] by their row.

    Raises:
        FormatError: a token beyond the embedding, or two of one text.
    """
    by_number = {number: text for text, number in content["model"]["vocab"].items()}
    types = dict.fromkeys(by_number, TokenType.NORMAL)
    added = content.get("added_tokens", [])
    for token in added:
        special = token["special"] or _looks_special(token["content"])
        types[token["id"]] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        # llama.cpp looks for these in the text as it is, before spaces become ▁.
        text = token["content"] if special else token["content"].replace("▁", " ")
        by_number[token["id"]] = text
    beyond = [number for number in by_number if number >= vocab_size]
    if beyond:
        raise FormatError(
            f"{len(beyond)} tokens, such as {by_number[beyond[0]]!r}, have no row among the"
            f" {vocab_size} of the embedding",
            where="tokenizer",
            remedy="The tokenizer is of another model, or was extended after it.",
        )
    texts = [by_number.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    _require_distinct(texts)
    return Vocabulary(
        texts,
        [types.get(number, TokenType.UNUSED) for number in range(vocab_size)],
        {token["id"] for token in added},
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    """The metadata of the special tokens: their numbers, which of them frame a text, and the chat
    template.

    Raises:
        FormatError: more than one token is put before or after a text.
    """
    numbers = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    before, after = _frame(tokenizer)
    if len(before) > 1 or len(after) > 1:
        raise FormatError(
            f"tokens {before} before and {after} after every text",
            where="tokenizer",
            remedy="llama.cpp puts at most BOS before a text and EOS after it.",
        )
    # What is put there is what llama.cpp must call so, whatever the tokenizer calls it.
    if before:
        numbers["bos"] = before[0]
    if after:
        numbers["eos"] = after[0]
    metadata = {ROLES[role]: u32(number) for role, number in numbers.items() if number is not None}
    metadata[ADD_BOS] = boolean(bool(before))
    metadata[ADD_EOS] = boolean(bool(after))
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    if template:
        metadata[CHAT_TEMPLATE] = string(template)
    return metadata


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that are put before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    count = len(framed) - len(bare)
    for begin in range(count + 1):
        if framed[begin : begin + len(bare)] == bare:
            return framed[:begin], framed[begin + len(bare) :]
    raise FormatError(
        f"'a' is {bare} alone and {framed} with special tokens",
        where="tokenizer",
        remedy="llama.cpp only puts BOS before a text and EOS after it.",
    )


def _looks_special(text: str) -> bool:
    """Tokens that are special, though some tokenizers forgot to say so: llama.cpp's list."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))  # noqa: RUF001
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _require_distinct(texts: list[str]) -> None:
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):
        if not text or text in seen:
            raise FormatError(
                f"token {number} is {text!r}"
                + (f", and so is token {seen[text]}" if text in seen else ""),
                where="tokenizer",
                remedy="llama.cpp needs a text of its own for every token.",
            )
        seen[text] = number
