"""Perplexity: the same figure as a plain loop and as lm-evaluation-harness's rolling windows."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from labkit.core.errors import CorpusError
from labkit.evaluate.perplexity import perplexity, windows


class Words:
    """A tokenizer of numbers between blanks, enough for these tests."""

    bos_token_id = 0
    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [int(word) for word in text.split()]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=50,
        max_position_embeddings=64,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def _text(count, seed=0):
    numbers = torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(map(str, numbers.tolist()))


def _plain(model, text, context, stride):
    """Token by token: the log-probability of each, given what its window lets it see."""
    ids = [0, *map(int, text.split())]
    total, scored_to = 0.0, 1
    while scored_to < len(ids):
        end = min(scored_to + (context if scored_to == 1 else stride), len(ids))
        start = max(0, end - context - 1)
        for place in range(scored_to, end):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
            total -= logits.double().log_softmax(-1)[ids[place]].item()
        scored_to = end
    return math.exp(total / (len(ids) - 1))


@pytest.mark.parametrize(("count", "context", "stride"), [(50, 16, 16), (50, 16, 5), (10, 16, 16)])
def test_equal_to_a_plain_loop(model, count, context, stride):
    got = perplexity(model, Words(), _text(count), context, stride, batch_size=3)
    assert got.tokens == count
    assert got.value == pytest.approx(_plain(model, _text(count), context, stride), rel=1e-5)


@pytest.mark.parametrize("count", [2, 15, 16, 17, 33, 100])
def test_windows_are_those_of_lm_evaluation_harness(count):
    """`get_rolling_token_windows(tokens, prefix, max_seq_len, context_len=1)` and
    `make_disjoint_window`, as lm-eval runs them for `loglikelihood_rolling`."""
    utils = pytest.importorskip("lm_eval.utils")
    tokens, context = list(range(1, count + 1)), 16
    rolled = map(
        utils.make_disjoint_window,
        utils.get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=context, context_len=1),
    )
    ids = [0, *tokens]
    ours = [
        (ids[start:first], ids[first:end])
        for start, end, first in windows(len(ids), context, context)
    ]
    assert ours == [(list(seen), list(scored)) for seen, scored in rolled]


def test_every_token_is_scored_once():
    for count, context, stride in [(2, 8, 8), (100, 8, 3), (101, 8, 8), (9, 8, 1)]:
        scored = [n for _, end, first in windows(count, context, stride) for n in range(first, end)]
        assert scored == list(range(1, count))
        assert all(end - start <= context + 1 for start, end, _ in windows(count, context, stride))


def test_the_batch_size_does_not_matter(model):
    values = [
        perplexity(model, Words(), _text(90), 16, batch_size=size).value for size in (1, 4, 64)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_an_unsure_model_has_the_vocabulary_as_perplexity(model):
    from copy import deepcopy

    blank = deepcopy(model)
    torch.nn.init.zeros_(blank.lm_head.weight)
    assert perplexity(blank, Words(), _text(60), 16).value == pytest.approx(50, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "context", "stride", "message"),
    [
        ("", 16, None, "two tokens"),
        ("7", 16, None, "two tokens"),
        ("1 2 3", 65, None, "64 positions"),
        ("1 2 3", 16, 17, "stride"),
        ("1 2 3", 16, 0, "stride"),
    ],
)
def test_bad_input(model, text, context, stride, message):
    with pytest.raises(CorpusError, match=message):
        perplexity(model, Words(), text, context, stride)
