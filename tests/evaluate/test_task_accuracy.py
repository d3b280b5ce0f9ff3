"""Task accuracy: one forward pass says what greedy generation would have written."""

import pytest

from labkit.data.tasks import TASKS, make_task
from labkit.evaluate.tasks import answered, task_accuracy, wilson_interval
from labkit.models import load


@pytest.fixture(scope="module")
def loaded():
    return load("reference-lm")


def _generated(model, tokenizer, item):
    ids = tokenizer(item.prompt, return_tensors="pt")
    count = len(tokenizer(item.answer, add_special_tokens=False)["input_ids"])
    out = model.generate(
        **ids, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", TASKS)
def test_equal_to_greedy_generation(loaded, name):
    model, tokenizer = loaded
    items = make_task(name, 12, seed=5)
    expected = [_generated(model, tokenizer, item) == item.answer for item in items]
    assert answered(model, tokenizer, items, batch_size=5) == expected


def test_counts_by_kind_add_up(loaded):
    result = task_accuracy(*loaded, "doctest", n=40)
    assert sum(right for right, _ in result.by_kind.values()) == result.correct
    assert sum(count for _, count in result.by_kind.values()) == result.total == 40
    low, high = result.interval
    assert 0 <= low <= result.accuracy <= high <= 1


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # R: binom::binom.wilson(correct, total)
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (90, 100, 0.8256, 0.9448),
    ],
)
def test_wilson_interval(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)
