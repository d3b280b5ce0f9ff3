from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import ShapeError
from labkit.data.images import in_memory
from labkit.evaluate.images import Accuracy, accuracy
from labkit.evaluate.interleaved import interleaved_ms

RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=200)


def test_accuracy_counts_the_largest_logit():
    pixels = torch.rand(4, 1, 2, 2)
    images = in_memory("four", pixels, torch.tensor([0, 1, 2, 2]), ("a", "b", "c"))
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    found = accuracy(lambda x: logits, images)
    assert found.right.tolist() == [True, True, True, False]
    assert found.value == 0.75
    assert found.error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


@given(RIGHT)
def test_the_difference_has_the_error_of_paired_values(pairs):
    ours, theirs = (torch.tensor(column) for column in zip(*pairs, strict=True))
    change, error = Accuracy(ours).minus(Accuracy(theirs))
    each = ours.double() - theirs.double()
    assert change == pytest.approx(float(each.mean()))
    assert error == pytest.approx(float(each.std(correction=0)) / math.sqrt(len(each)), abs=1e-12)
    assert Accuracy(ours).minus(Accuracy(ours)) == (0.0, 0.0)


def test_other_images_cannot_be_compared():
    with pytest.raises(ShapeError, match="3 and 4 images"):
        Accuracy(torch.ones(3, dtype=bool)).minus(Accuracy(torch.ones(4, dtype=bool)))


def test_every_round_calls_each_function_once_in_turn():
    calls: list[str] = []
    found = interleaved_ms({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab"
    assert set(found) == {"a", "b"} and min(found.values()) >= 0
