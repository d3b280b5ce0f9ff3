"""SentencePiece's BPE in a tokenizer.json, and the scores that llama.cpp merges by.

A tokenizer.json lists merges: pairs, the first of which to be applied stands first. llama.cpp's
"llama" tokenizer has no list: of all neighbours that together are a token it merges the pair of the
highest score. Both do the same where the list holds every way to make a token out of two, and all
ways to make one token before those of the next; then the score is minus the place in that order.
SentencePiece's own models have just this form, and `require_complete` checks it.
"""

from __future__ import annotations

from typing import Any

from labkit.core.errors import FormatError
from labkit.formats.gguf.vocabulary import TokenType, Vocabulary

BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
# What llama.cpp's converter gives tokens that are never made by merging.
ADDED_SCORE = -1000.0
UNUSED_SCORE = -10_000.0


def piece_scores(
    model: dict[str, Any], words: Vocabulary, unknown: str | None
) -> tuple[list[float], list[TokenType]]:
    """The score and the type of every token.

    Args:
        model: of a tokenizer.json: BPE with byte fallback.
        words: its tokens.
        unknown: the token that stands for what is none.

    Raises:
        FormatError: its merges are not those of a SentencePiece model, or a byte has no token.
    """
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    added = {words.texts[number] for number in words.added}
    added |= {text for text, number in model["vocab"].items() if number in words.added}
    if missing := BYTES - set(model["vocab"]):
        raise _refused(f"{len(missing)} bytes, such as {min(missing)}, have no token")
    order = _order(merges, added)
    require_complete(model["vocab"], merges, added)
    types = [
        TokenType.BYTE
        if text in BYTES and number not in words.added
        else TokenType.UNKNOWN
        if text == unknown
        else kind
        for number, (text, kind) in enumerate(zip(words.texts, words.types, strict=True))
    ]
    scores = [
        UNUSED_SCORE
        if kind == TokenType.UNUSED
        else ADDED_SCORE
        if number in words.added
        else -float(order.get(text, 0))
        for number, (text, kind) in enumerate(zip(words.texts, types, strict=True))
    ]
    return scores, types


def prepends_space(content: dict[str, Any]) -> bool:
    """Whether a text gets a space before it, as SentencePiece's "dummy prefix".

    Raises:
        FormatError: the tokenizer changes a text in another way than by ▁ for spaces.
    """
    normalizer = content.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if content.get("pre_tokenizer"):
        steps = [*steps, content["pre_tokenizer"]]
    prefix = replaced = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaced = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme} if not step[
                "split"
            ]:
                prefix, replaced = prefix or scheme != "never", True
            # Gemma's: there are no spaces left for it to split at.
            case {"type": "Split", "pattern": {"String": " "}} if replaced:
                pass
            case _:
                raise _refused(f"the step {str(step)[:200]} changes or cuts the text")
    if not replaced:
        raise _refused("spaces do not become ▁")
    return prefix


def require_complete(vocab: dict[str, int], merges: list[tuple[str, ...]], added: set[str]) -> None:
    """Check that the merges are all pairs of tokens that make a token.

    Raises:
        FormatError: one is missing; llama.cpp would apply it.
    """
    listed = set(merges)
    for piece in vocab:
        if piece in added or piece in BYTES:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            known = left in vocab and right in vocab
            if known and (left, right) not in listed and not added & {left, right}:
                raise _refused(f"no merge makes {piece!r} of {left!r} and {right!r}")
            if piece[cut] not in vocab or piece[0] not in vocab:
                raise _refused(f"a letter of {piece!r} is no token by itself")


def _order(merges: list[tuple[str, ...]], added: set[str]) -> dict[str, int]:
    """The place of each token that is made by merging; all its merges must stand together."""
    order: dict[str, int] = {}
    last = None
    for pair in merges:
        piece = "".join(pair)
        if piece in added:  # found in the text before anything is merged
            continue
        if piece != last and piece in order:
            raise _refused(f"the merges that make {piece!r} stand in several places")
        order.setdefault(piece, len(order) + 1)
        last = piece
    return order


def _refused(why: str) -> FormatError:
    return FormatError(
        f"not a SentencePiece model's BPE: {why}",
        where="tokenizer.json",
        remedy="llama.cpp merges pairs by the score of what they make, and would cut texts in other"
        " places. Train the tokenizer with SentencePiece (BPE, byte fallback), or byte-level.",
    )
