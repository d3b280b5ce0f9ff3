"""llama.cpp cuts a text as the Hugging Face tokenizer does, and so does what labkit reads back."""

# ruff: noqa: RUF001
from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from formats.gguf.trained import (
    LINES,
    SPECIAL,
    byte_level,
    llama_tokenizer,
    sentence_piece,
    vocabulary_file,
)
from labkit.core.errors import FormatError
from labkit.formats.gguf import pre_tokenizers as rules
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.tokenizer_reading import tokenizer_from
from labkit.formats.gguf.tokenizer_writing import tokenizer_metadata
from labkit.formats.gguf.values import string

BUNDLED = Path(__file__).parents[3] / "data" / "reference-lm"

TOKENIZERS = {
    "the bundled model's": lambda: AutoTokenizer.from_pretrained(BUNDLED),
    "gpt-2": lambda: byte_level(None, bos_token="<|bos|>", eos_token="<|eos|>"),
    "smollm": lambda: byte_level(None, digits=True, eos_token="<|eos|>"),
    "llama-bpe": lambda: byte_level(
        rules.LLAMA3, ignore_merges=True, template="<|bos|> $A", bos_token="<|bos|>"
    ),
    "dbrx": lambda: byte_level(rules.LLAMA3, template="<|bos|> $A <|eos|>", eos_token="<|eos|>"),
    "qwen2": lambda: byte_level(rules.QWEN2, eos_token="<|eos|>", pad_token="<|bos|>"),
    "tekken": lambda: byte_level(rules.TEKKEN, ignore_merges=True, template="<|bos|> $A"),
    "Llama 2's": lambda: sentence_piece("prefix"),
    "Mistral's": lambda: sentence_piece("first", template="<s> $A </s>"),
    "Gemma's": lambda: sentence_piece("none"),
}
if transformers.__version__ >= "5":  # which builds its tokenizers itself, from these two lists
    TOKENIZERS |= {
        "LlamaTokenizer": lambda: built("LlamaTokenizer", sentence_piece()),
        "GemmaTokenizer": lambda: built(
            "GemmaTokenizer", sentence_piece("none"), bos_token="<s>", eos_token="</s>"
        ),
        "GPT2Tokenizer": lambda: built("GPT2Tokenizer", byte_level(None), **END),
        "GPTNeoXTokenizer": lambda: built("GPTNeoXTokenizer", byte_level(None), **END),
        "Qwen2Tokenizer": lambda: built("Qwen2Tokenizer", byte_level(), eos_token="<|eos|>"),
    }
END = {"bos_token": "<|eos|>", "eos_token": "<|eos|>", "unk_token": "<|eos|>"}
# What llama.cpp itself does otherwise, see tokenizer_writing and pre_tokenizers.
ASCII_CASES = {"tekken"}
SPACE_ONLY_FIRST = {"Mistral's", "LlamaTokenizer"}
NFC = {"GPTNeoXTokenizer", "Qwen2Tokenizer"}

HARD = [
    "",
    " ",
    "\n",
    "\t\n\r\n \n\n\n",
    "Hello, world!",
    " leading and trailing ",
    "two  three   four    spaces     and        many",
    "    def f(x):\n        return x  # tabs\tand\t\tmore\n\n\n",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like? We'Ve a'lL",
    "1 12 123 1234 12345 1234567890 3.14 1,000,000 ½ ² Ⅻ ٣٤٥ １２３",
    "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙👩‍👩‍👧‍👦 🇩🇪",
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български",
    "Ünïcödé: e\u0301 vs é, ﬁ, ß, İ, ı, ǅ, ﷺ, \u00a0nbsp\u3000wide\u200bzero\ufeffbom",
    "''''''```````\"\"\"\"......!!!!!!??????$$$^^^~~~|||+++<<<>>>",
    "<s>hello</s> <|bos|>x<|eos|> <tool>call</tool><tool> <|endoftext|>",
    "<|im_start|>user\n  <indent> <indent>text<|im_start|>",
    "<unk>a<unk> <0x41> ▁literal▁",
    "\x00\x01\x7f\x80 control",
    "a" * 50 + " " * 50 + "\n" * 20 + "ab" * 20,
    "mixedCASE camelCase SHOUTING snake_case kebab-case https://example.org/a?b=c#d",
    "नमस्ते مرحبا שלום สวัสดี ကမ္ဘာ 안녕 こんにちは 东京",
    "\U0010ffff\U000e0001𝕳𝖊𝖑𝖑𝖔 𐍈",
]
ALPHABET = "ab eé\n\t 0129'sST.,-_<>|/▁#東🚀\u0301\u00a0Жж\r"
TEXTS = st.one_of(
    st.text(st.sampled_from(ALPHABET), max_size=40),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(
        st.sampled_from([*"'\n ", "  ", "don", "'t", "LL", "12", "<tool>", "é", "the ", "   "]),
        max_size=15,
    ).map("".join),
)


def built(name: str, trained, **special):
    """A tokenizer of a class of transformers, of a trained one's tokens and merges."""
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return getattr(transformers, name)(vocab=model["vocab"], merges=merges, **special)


@cache
def three(name: str, folder: Path):
    """The tokenizer, llama.cpp's of the file written from it, and labkit's of the same file."""
    ours = TOKENIZERS[name]()
    path = vocabulary_file(
        folder / f"{name}.gguf".replace(" ", "_"), tokenizer_metadata(ours, len(ours) + 3)
    )
    with GgufFile(path) as file:
        back = tokenizer_from(file.metadata)
    return ours, llama_tokenizer(path), back


def comparable(name: str, text: str) -> bool:
    if name in ASCII_CASES:
        return text.isascii()
    if name in NFC:
        return unicodedata.is_normalized("NFC", text)
    if name in SPACE_ONLY_FIRST:
        return not text.startswith((" ", "▁")) and "<" not in text and " " * 12 not in text
    return True


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hard_strings(name, tmp_path_factory):
    ours, llama, back = three(name, tmp_path_factory.getbasetemp())
    for text in [*HARD, *LINES]:
        if not comparable(name, text):
            continue
        expected = ours(text)["input_ids"]
        assert llama(text) == expected, text
        assert back(text)["input_ids"] == expected, text
        bare = ours(text, add_special_tokens=False)["input_ids"]
        assert llama(text, add_special=False) == bare, text
        assert back.decode(expected) == ours.decode(expected)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_any_text(name, tmp_path_factory, text):
    ours, llama, back = three(name, tmp_path_factory.getbasetemp())
    if comparable(name, text):
        expected = ours(text)["input_ids"]
        assert llama(text) == expected
        assert back(text)["input_ids"] == expected


def test_what_the_metadata_say():
    """The bundled model: digits one by one, then GPT-2's rule; a text begins with its one token."""
    metadata = tokenizer_metadata(AutoTokenizer.from_pretrained(BUNDLED), 4100)
    values = {key: value.value for key, value in metadata.items()}
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == "smollm"
    assert values["tokenizer.ggml.tokens"][:2] == ["<|endoftext|>", "!"]
    assert values["tokenizer.ggml.tokens"][4096:] == [
        "[PAD4096]",
        *"[PAD4097] [PAD4098] [PAD4099]".split(),
    ]
    assert values["tokenizer.ggml.token_type"] == [3] + [1] * 4095 + [5] * 4
    assert values["tokenizer.ggml.merges"][:2] == ["Ġ Ġ", "ĠĠ ĠĠ"]
    assert values["tokenizer.ggml.bos_token_id"] == values["tokenizer.ggml.eos_token_id"] == 0
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken"])
def test_the_rule_is_named(name):
    ours = TOKENIZERS[name]()
    assert tokenizer_metadata(ours, len(ours))["tokenizer.ggml.pre"].value == name
    assert rules.pre_tokenizer_named(name).name == name


@pytest.mark.parametrize("rule", rules.PRE_TOKENIZERS, ids=lambda rule: rule.name)
def test_llama_cpp_knows_every_name(rule, tmp_path):
    """And under each cuts in the same way: these are the names of one rule."""
    ours = byte_level(rules.GPT2, template="<|bos|> $A <|eos|>")
    metadata = tokenizer_metadata(ours, len(ours))
    cut = []
    for name in (rule.name, *rule.other_names):
        metadata["tokenizer.ggml.pre"] = string(name)
        llama = llama_tokenizer(vocabulary_file(tmp_path / "a.gguf", metadata))
        cut.append([llama(text) for text in [*HARD, *LINES]])
    assert all(texts == cut[0] for texts in cut)


def test_special_tokens_and_the_template_come_back(tmp_path):
    ours = sentence_piece("prefix", template="<s> $A </s>")
    ours.chat_template = "{{ messages }}"
    with GgufFile(
        vocabulary_file(tmp_path / "a.gguf", tokenizer_metadata(ours, len(ours)))
    ) as file:
        back = tokenizer_from(file.metadata)
    assert back.chat_template == "{{ messages }}"
    assert [back.unk_token, back.bos_token, back.eos_token] == SPECIAL
    assert back.pad_token is None
    assert back.get_vocab() == ours.get_vocab()


def test_byte_fallback_tokens_have_their_type():
    ours = sentence_piece()
    metadata = tokenizer_metadata(ours, len(ours))
    types = metadata["tokenizer.ggml.token_type"].value
    assert types[:3] == [2, 3, 3] and types[3:259] == [6] * 256
    assert set(types[259:]) == {1, 4}
    assert metadata["tokenizer.ggml.add_space_prefix"].value is True


def trained(model, trainer, pre_tokenizer=None, normalizer=None, decoder=None):
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def changed(tokenizer, **parts):
    """The tokenizer with parts of its tokenizer.json exchanged."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"].update(parts.pop("model", {}))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content | parts)))


def without_a_merge():
    ours = sentence_piece()
    merges = json.loads(ours.backend_tokenizer.to_str())["model"]["merges"]
    made = ["".join(pair) for pair in merges]
    twice = next(i for i, piece in enumerate(made) if made.count(piece) > 1)
    return changed(ours, model={"merges": merges[:twice] + merges[twice + 1 :]})


def with_scattered_merges():
    ours = sentence_piece()
    merges = json.loads(ours.backend_tokenizer.to_str())["model"]["merges"]
    made = ["".join(pair) for pair in merges]
    twice = next(i for i, piece in enumerate(made) if made.count(piece) > 1)
    return changed(ours, model={"merges": merges[:twice] + merges[twice + 1 :] + [merges[twice]]})


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
REFUSED = {
    "'Unigram'": lambda: trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=300)),
    "'WordPiece'": lambda: trained(models.WordPiece(), trainers.WordPieceTrainer(vocab_size=300)),
    "cuts by the step .*Whitespace": lambda: trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300),
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTE_LEVEL]),
        decoder=decoders.ByteLevel(),
    ),
    "cuts by the step .*'add_prefix_space': True": lambda: trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        decoder=decoders.ByteLevel(),
    ),
    "takes whole words before merges": lambda: byte_level(rules.QWEN2, ignore_merges=True),
    "not byte-level": lambda: trained(
        models.BPE(), trainers.BpeTrainer(vocab_size=300), BYTE_LEVEL
    ),
    "the normalizer 'Lowercase'": lambda: trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300),
        BYTE_LEVEL,
        normalizers.Lowercase(),
        decoders.ByteLevel(),
    ),
    "marks the ends of words": lambda: changed(byte_level(), model={"end_of_word_suffix": "</w>"}),
    "before and .* after every text": lambda: byte_level(template="<|bos|> <|im_start|> $A"),
    "no merge makes": without_a_merge,
    "stand in several places": with_scattered_merges,
    "spaces do not become": lambda: changed(sentence_piece(), normalizer=None),
    "changes or cuts the text": lambda: changed(sentence_piece(), normalizer={"type": "NFKC"}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_tokenizers_that_llama_cpp_cannot_have(why):
    tokenizer = REFUSED[why]()
    with pytest.raises(FormatError, match=why) as caught:
        tokenizer_metadata(tokenizer, len(tokenizer))
    assert caught.value.remedy


def test_a_vocabulary_larger_than_the_embedding():
    ours = byte_level()
    with pytest.raises(FormatError, match="have no row among the 500 of the embedding"):
        tokenizer_metadata(ours, 500)


def test_a_tokenizer_that_is_not_fast():
    with pytest.raises(FormatError, match=r"has no tokenizer\.json"):
        tokenizer_metadata(object(), 10)


T = "tokenizer.ggml."
BROKEN = {
    "the kind 'bert'": {T + "model": "bert"},
    "the kind 'None'": {T + "model": None},
    "the pre-tokenizer 'deepseek-v9'": {T + "pre": "deepseek-v9"},
    "no list of str": {T + "tokens": [1, 2]},
    "two of one text": {T + "tokens": ["a", "a"], T + "token_type": [1, 1]},
    "3 types of": {T + "token_type": [1, 1, 1]},
    "the merge 'a zz'": {T + "merges": ["a zz"]},
    "the merge 'ab'": {T + "merges": ["ab"]},
    "merges: no list of str": {T + "merges": [3]},
    "token 9999 of": {T + "eos_token_id": 9999},
    "token True of": {T + "eos_token_id": True},
    "it frames every text, and is not there": {T + "add_eos_token": True},
}


@pytest.mark.parametrize("why", BROKEN)
def test_metadata_that_contradict_themselves(why):
    ours = byte_level()
    metadata = {key: value.value for key, value in tokenizer_metadata(ours, len(ours)).items()}
    tokenizer_from(metadata)
    with pytest.raises(FormatError, match=why):
        tokenizer_from(metadata | BROKEN[why])


def test_a_piece_of_a_million_letters():
    """Its splits alone would fill the memory."""
    ours = sentence_piece()
    metadata = {key: value.value for key, value in tokenizer_metadata(ours, len(ours)).items()}
    metadata[T + "tokens"][-5] = "a" * 10**6
    with pytest.raises(FormatError, match="a token of 1000000 letters"):
        tokenizer_from(metadata)


@cache
def plain_metadata(kind: str):
    ours = byte_level() if kind == "byte-level" else sentence_piece()
    return {key: value.value for key, value in tokenizer_metadata(ours, len(ours) + 2).items()}


ODD = st.sampled_from(
    [None, True, -1, 0, 3, 2**31, 1.5, "", " ", "a", "b c", "▁", "<0x41>", "\0", "é", [], ["a"]]
)


@pytest.mark.parametrize("kind", ["byte-level", "sentence-piece"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_metadata(kind, data):
    """A tokenizer that works, or a FormatError."""
    metadata = dict(plain_metadata(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        items = metadata[key]
        if not isinstance(items, list) or not items or data.draw(st.integers(0, 9)) == 0:
            metadata[key] = data.draw(ODD)
            continue
        place = data.draw(st.integers(0, len(items) - 1))
        odd = data.draw(st.one_of(ODD, st.sampled_from(items)))
        length = data.draw(st.sampled_from([0, 1, 1, 1, 20]))
        metadata[key] = [*items[:place], odd, *items[place + length :]]
    try:
        tokenizer = tokenizer_from(metadata)
    except FormatError:
        return
    tokenizer.decode(tokenizer("Ein Text: <tool> 東京\n\n  12")["input_ids"])


@pytest.mark.parametrize("scores", [[1.0], None, ["a"]])
def test_scores_that_are_not_there(scores):
    ours = sentence_piece()
    metadata = {key: value.value for key, value in tokenizer_metadata(ours, len(ours)).items()}
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.scores"):
        tokenizer_from(metadata | {T + "scores": scores})
