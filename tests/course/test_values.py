"""Values are compared by content, copied without shared memory, and shown small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labkit.course.values import leaves, same, show, size, snapshot

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.int32, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@dataclass
class Pair:
    codes: torch.Tensor
    scale: float


class Plain:
    def __init__(self, value):
        self.value = value


@settings(deadline=None)
@given(ARRAYS)
def test_an_array_is_the_same_as_its_copy_and_its_tensor(array):
    assert same(array, snapshot(array))
    assert same(array, torch.from_numpy(array.copy()))
    assert same([array, (1, "a")], [array.copy(), (1, "a")])


@settings(deadline=None)
@given(ARRAYS.filter(lambda a: a.size > 0 and a.dtype != np.bool_))
def test_one_changed_element_is_seen(array):
    changed = array.copy()
    changed.flat[-1] = 5 if array.flat[-1] != 5 else 6
    assert not same(array, changed)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (float("nan"), float("nan"), True),
        (1, 1.0, True),
        (1, torch.tensor(1), True),
        (torch.ones(1), 1, False),
        (torch.ones(2, 2), torch.ones(4), False),
        ([1, 2], [1, 2, 3], False),
        ({"a": 1}, {"b": 1}, False),
        ("a", "b", False),
        (None, None, True),
        (None, 0, False),
        (Pair(torch.ones(2), 1.0), Pair(torch.ones(2), 1.0), True),
        (Pair(torch.ones(2), 1.0), Pair(torch.zeros(2), 1.0), False),
        (Plain(torch.ones(2)), Plain(torch.ones(2)), True),
        (Plain(torch.ones(2)), Plain(torch.zeros(2)), False),
        (torch.tensor([1.0]).bfloat16(), torch.tensor([1.0]), True),
    ],
)
def test_same(left, right, expected):
    assert same(left, right) is expected
    assert same(right, left) is expected


def test_a_module_is_compared_by_its_weights():
    left, right = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert not same(left, right)
    right.load_state_dict(left.state_dict())
    assert same(left, right)


def test_a_snapshot_shares_nothing():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    copy = snapshot({"y": [y]})["y"][0]
    assert not copy.requires_grad
    with torch.no_grad():
        y += 1
    assert copy.tolist() == [2, 2]


def test_a_tensor_that_claims_to_equal_everything_is_unmasked():
    class Liar(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return True

    liar = torch.zeros(2).as_subclass(Liar)
    assert type(snapshot(liar)) is torch.Tensor
    assert not same(snapshot(liar), torch.ones(2))


def test_size_and_leaves():
    value = (torch.ones(2, 3), {"a": 1.0})
    assert size(value) == 7
    assert [path for path, _ in leaves(value)] == ["[0]", "[1]['a']"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456789, "0.123457"),
        (torch.tensor(0.5), "0.5"),
        (torch.tensor([1, 2], dtype=torch.int8), "int8 2 [1, 2]"),
        (torch.zeros(2, 2), "float32 2x2\n[[0., 0.],\n [0., 0.]]"),
        ((1, 2.5), "tuple (1, 2.5)"),
        (None, "None"),
    ],
)
def test_show(value, text):
    assert show(value) == text


def test_large_values_are_shown_small():
    assert len(show(torch.arange(10_000.0).view(100, 100))) < 250
    assert len(show("x" * 1000)) == 200
    assert len(show(list(range(1000)))) < 200
