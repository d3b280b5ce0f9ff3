"""How byte-level BPE cuts a text into words, and what llama.cpp calls each way of cutting.

A GGUF file does not hold the rule: it holds a name (`tokenizer.ggml.pre`), and llama.cpp has the
rules. Its own converter knows a tokenizer by a hash over the tokens of a test text, and so knows
the published ones alone. labkit reads the rule out of the tokenizer and looks for a name whose rule
in llama.cpp is the same one, which also serves a tokenizer that somebody trained today.

Source: llama-vocab.cpp, llm_tokenizer_bpe and llama_vocab::impl::load, of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.core.errors import FormatError

DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA3 = _CONTRACTIONS_WORDS + r"\p{N}{1,3}" + _AFTER_NUMBERS
QWEN2 = _CONTRACTIONS_WORDS + r"\p{N}" + _AFTER_NUMBERS
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """A rule of llama.cpp.

    Args:
        name: what a file says for it.
        splits: patterns; each cuts the pieces that the one before it left.
        ignore_merges: a word that is a token as a whole is taken so, whatever its merges.
        add_bos: llama.cpp begins a text with BOS where the file says nothing about it.
        other_names: llama.cpp's other names for the same rule.
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    other_names: tuple[str, ...] = ()


PRE_TOKENIZERS = (
    PreTokenizer(
        "gpt-2",
        (GPT2,),
        other_names=("phi-2", "olmo", "mpt", "exaone4", "a.x-4.0", "gigachat", "trillion"),
    ),
    PreTokenizer(
        "smollm",
        (DIGIT, GPT2),
        other_names=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    PreTokenizer(
        "llama-bpe",
        (LLAMA3,),
        ignore_merges=True,
        add_bos=True,
        other_names=("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
    ),
    PreTokenizer("dbrx", (LLAMA3,), other_names=("smaug-bpe",)),
    PreTokenizer(
        "qwen2",
        (QWEN2,),
        other_names=("stablelm2", "hunyuan", "deepseek-r1-qwen", "megrez", "solar-open"),
    ),
    # llama.cpp writes this one with [^a-z] and [^A-Z] for the cases: words that mix cases of
    # letters beyond ASCII may be cut elsewhere.
    PreTokenizer("tekken", (TEKKEN,), ignore_merges=True, add_bos=True),
)

_BY_NAME = {name: rule for rule in PRE_TOKENIZERS for name in (rule.name, *rule.other_names)}


def pre_tokenizer_named(name: object) -> PreTokenizer:
    """The rule that a file names.

    Raises:
        FormatError: labkit does not know the name.
    """
    if not isinstance(name, str) or name not in _BY_NAME:
        raise FormatError(
            f"the pre-tokenizer {str(name)[:80]!r}",
            where="tokenizer.ggml.pre",
            remedy=f"labkit knows {', '.join(_BY_NAME)}. Take the tokenizer from the model's"
            " Hugging Face folder instead.",
        )
    return _BY_NAME[name]


def pre_tokenizer_of(tokenizer: Mapping[str, Any]) -> PreTokenizer:
    """The rule of llama.cpp that cuts as a tokenizer does.

    Args:
        tokenizer: the content of a tokenizer.json.

    Raises:
        FormatError: llama.cpp has no such rule under a name that labkit knows.
    """
    splits = tuple(_splits(tokenizer.get("pre_tokenizer")))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    for rule in PRE_TOKENIZERS:
        if (rule.splits, rule.ignore_merges) == (splits, ignore_merges):
            return rule
    raise FormatError(
        f"a byte-level tokenizer that cuts by {' then '.join(splits) or 'nothing'}"
        + (" and takes whole words before merges" if ignore_merges else ""),
        where="tokenizer.json, pre_tokenizer",
        remedy=f"labkit knows llama.cpp's {', '.join(rule.name for rule in PRE_TOKENIZERS)}, and"
        " none of them cuts so. Use a tokenizer that cuts like one of these; if llama.cpp has a"
        " name for this one, add it to labkit/formats/gguf/pre_tokenizers.py.",
    )


def pre_tokenizer_json(rule: PreTokenizer) -> dict[str, Any]:
    """The rule as tokenizer.json writes it."""
    parts = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        for split in rule.splits
    ]
    mapping = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [*parts, mapping]}


def _splits(step: Any) -> list[str]:
    """The patterns of a pre_tokenizer of tokenizer.json, in order."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            return [split for inner in steps for split in _splits(inner)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return [GPT2] if use_regex else []
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [GPT2]
        case {"type": "Digits", "individual_digits": True}:
            return [DIGIT]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} if not step[
            "invert"
        ]:
            return [pattern]
        # The same, said by what to keep: the patterns here leave nothing between their matches.
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed"} if step[
            "invert"
        ]:
            return [pattern]
        case _:
            return [f"the step {str(step)[:200]}"]
