"""A wrong kind of answer is named: type, parts, shape, kind of number, NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.course.structure import non_finite_problem, structure_problem

T = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (1, 1.0),
        (torch.tensor(1.5), 2.5),
        (np.float32(1), 1.0),
        (3, torch.tensor(4)),
        ([1, 2], (3, 4)),
        (T.double(), T),
        (T.to(torch.int64), T.to(torch.int8)),
        ("a", "b"),
        ({"a": 1}, {"a": 2}),
    ],
)
def test_the_right_kind(got, expected):
    assert structure_problem(got, expected) is None


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (1.5, 1, "one of the integers"),
        (True, 1, "booleans"),
        (T, 1.0, "should be one number"),
        (T[:1, 0], 1.0, "should be one number"),
        (1.0, T, "should be a torch tensor; it is a float"),
        (T.numpy(), T, "it is a numpy array of shape (2, 3)"),
        (T.T, T, "should have shape (2, 3); it has (3, 2)"),
        (T, T.int(), "should hold integers; its dtype is float32"),
        (T.int(), T, "should hold floats; its dtype is int32"),
        (T, (T, T), "should be a tuple of 2"),
        ((T, T), (T, T, T), "[0], [1], [2]"),
        ((T, T.int()), (T, T), "the answer[1] should hold floats"),
        ({"b": 1}, {"a": 1}, "['a']"),
        (3, "text", "should be a str"),
    ],
)
def test_the_wrong_kind(got, expected, words):
    assert words in structure_problem(got, expected)


def test_where_a_number_is_not_finite():
    bad = T.clone()
    bad[1, 2] = float("nan")
    assert non_finite_problem((T, bad), (T, T)) == (
        "the answer[1] is NaN at [1, 2], where a finite number is right"
    )
    assert non_finite_problem(bad, bad) is None
    assert "infinity" in non_finite_problem(float("inf"), 1.0)
