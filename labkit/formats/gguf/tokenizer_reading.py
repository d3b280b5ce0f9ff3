"""The metadata of a GGUF file as a Hugging Face tokenizer: the inverse of tokenizer_writing.

It works as llama.cpp does on the same file. What GGUF does not hold (a Unicode normalization that
the model's own tokenizer began with) is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from labkit.core.errors import FormatError
from labkit.formats.gguf.pre_tokenizers import pre_tokenizer_json, pre_tokenizer_named
from labkit.formats.gguf.vocabulary import (
    ADD_BOS,
    ADD_EOS,
    ADD_SPACE_PREFIX,
    CHAT_TEMPLATE,
    MERGES,
    MODEL,
    PRE,
    ROLES,
    SCORES,
    TOKENS,
    TYPES,
    TokenType,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LONGEST = 1024  # letters of a piece; SentencePiece's own longest have 16 to 64

_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def tokenizer_from(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a file describes.

    Args:
        metadata: plain values by key, as `GgufFile.metadata` has them.

    Raises:
        FormatError: a kind of tokenizer that labkit does not know, or lists that contradict each
            other.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get(MODEL)
    if kind not in ("gpt2", "llama"):
        raise _refused(
            MODEL,
            f"a tokenizer of the kind {str(kind)[:80]!r}",
            "labkit reads 'gpt2' (byte-level BPE) and 'llama' (SentencePiece's BPE). Take the"
            " tokenizer from the model's Hugging Face folder instead.",
        )
    texts, types = _tokens(metadata)
    content = (_byte_level if kind == "gpt2" else _sentence_piece)(metadata, texts, types)
    special = _special_numbers(metadata, len(texts))
    content["added_tokens"] = _added_tokens(texts, types)
    content["post_processor"] = _frame(metadata, content.pop("add_bos"), special, texts)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": texts[number] for role, number in special.items()},
    )
    if isinstance(template := metadata.get(CHAT_TEMPLATE), str):
        tokenizer.chat_template = template
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> dict[str, Any]:
    rule = pre_tokenizer_named(metadata.get(PRE))
    vocab = _vocab(texts, types)
    merges = []
    for line in _list(metadata, MERGES, str):
        left, space, right = line.partition(" ")
        if not space or not {left, right, left + right} <= vocab.keys():
            raise _refused(MERGES, f"the merge {line[:80]!r} is of tokens that there are not")
        merges.append([left, right])
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_json(rule),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "ignore_merges": rule.ignore_merges,
        },
        "add_bos": rule.add_bos,
    }


def _sentence_piece(
    metadata: Mapping[str, Any], texts: list[str], types: list[int]
) -> dict[str, Any]:
    scores = _list(metadata, SCORES, float)
    if len(scores) != len(texts):
        raise _refused(SCORES, f"{len(scores)} scores of {len(texts)} tokens")
    prefix = metadata.get(ADD_SPACE_PREFIX, True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [text for text, kind in zip(texts, types, strict=True) if kind == TokenType.UNKNOWN]
    return {
        "version": "1.0",
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces] if prefix else [spaces],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "BPE",
            "vocab": _vocab(texts, types),
            "merges": _merges(texts, types, scores),
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": unknown[0] if unknown else None,
        },
        "add_bos": True,
    }


def _merges(texts: list[str], types: list[int], scores: list[float]) -> list[list[str]]:
    """Every way to make a normal token of two, the best score first."""
    normal = {
        text: score
        for text, kind, score in zip(texts, types, scores, strict=True)
        if kind == TokenType.NORMAL
    }
    longest = max(normal, key=len, default="")
    if len(longest) > _LONGEST:
        raise _refused(TOKENS, f"a token of {len(longest)} letters: {longest[:40]!r}")
    # sorted is stable: equal scores stay in the order of the tokens' numbers.
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(normal, key=lambda piece: -normal[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    texts = _list(metadata, TOKENS, str)
    types = _list(metadata, TYPES, int) if TYPES in metadata else [TokenType.NORMAL] * len(texts)
    if len(types) != len(texts):
        raise _refused(TYPES, f"{len(types)} types of {len(texts)} tokens")
    if not texts or len(set(texts)) < len(texts):
        raise _refused(TOKENS, "no tokens, or two of one text")
    return texts, types


def _vocab(texts: list[str], types: list[int]) -> dict[str, int]:
    """Numbers by text, without the rows that only fill up the embedding."""
    return {
        text: number
        for number, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind != TokenType.UNUSED or text != f"[PAD{number}]"
    }


def _added_tokens(texts: list[str], types: list[int]) -> list[dict[str, Any]]:
    """What is found in a text before it is cut."""
    return [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != TokenType.USER_DEFINED,
        }
        for number, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in _ADDED
    ]


def _special_numbers(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    numbers = {role: metadata[key] for role, key in ROLES.items() if key in metadata}
    for role, number in numbers.items():
        if type(number) is not int or not 0 <= number < count:
            raise _refused(ROLES[role], f"token {str(number)[:50]} of {count}")
    return numbers


def _frame(
    metadata: Mapping[str, Any], add_bos: bool, special: dict[str, int], texts: list[str]
) -> dict[str, Any] | None:
    """BOS before a text and EOS after it, as the file says."""
    before = ["bos"] if metadata.get(ADD_BOS, add_bos) else []
    after = ["eos"] if metadata.get(ADD_EOS, False) else []
    if missing := [role for role in before + after if role not in special]:
        raise _refused(ROLES[missing[0]], "it frames every text, and is not there")
    if not before and not after:
        return None

    def tokens(roles: list[str], part: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": texts[special[r]], "type_id": part}} for r in roles]

    def framed(name: str, part: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": part}}
        return [*tokens(before, part), text, *tokens(after, part)]

    return {
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": framed("A", 0) + framed("B", 1),
        "special_tokens": {
            texts[special[role]]: {
                "id": texts[special[role]],
                "ids": [special[role]],
                "tokens": [texts[special[role]]],
            }
            for role in before + after
        },
    }


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    items = metadata.get(key)
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise _refused(key, f"no list of {kind.__name__}")
    return items


def _refused(where: str, what: str, remedy: str = "The file is damaged; fetch it again."):
    return FormatError(what, where=where, remedy=remedy)
