"""Chapter 04: other right answers pass, and each known misconception is told by its own message."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.course.checking import evaluate
from labkit.course.registry import exercises_of, get


def verdict(exercise_id, function):
    return evaluate(get(exercise_id), function, np.random.default_rng(7))


def features_by_loops(hidden, threshold, layer_share, token_share):
    layers, tokens, features = hidden.shape
    found = []
    for feature in range(features):
        counted = 0
        for layer in range(layers):
            loud = int((hidden[layer, :, feature].abs() >= threshold).sum())
            counted += loud / tokens >= token_share
        if counted / layers >= layer_share:
            found.append(feature)
    return torch.tensor(found, dtype=torch.int64)


def split_with_reciprocals(x, weight, threshold):
    loud = torch.where(x.abs().amax(0) >= threshold)[0]
    quiet = [c for c in range(x.shape[1]) if c not in loud.tolist()]
    y = x[:, loud] @ weight[:, loud].T
    if not quiet:
        return y
    top_x, top_w = x[:, quiet].abs().amax(1), weight.abs().amax(1)
    a = torch.round(x[:, quiet] * (127 / top_x)[:, None]).clamp(-127, 127).double()
    b = torch.round(weight[:, quiet] * (127 / top_w)[:, None]).clamp(-127, 127).double()
    return y + (a @ b.T * (top_x[:, None] / 127) * (top_w[None, :] / 127)).float()


def smooth_by_channels(gain, weight, x_max, alpha):
    gain, weight = gain.clone(), weight.clone()
    for j in range(len(gain)):
        top = float(weight[:, j].abs().max())
        if float(x_max[j]) == 0 or top == 0:
            continue
        s = float(x_max[j]) ** alpha / top ** (1 - alpha)
        gain[j] = gain[j] / s
        weight[:, j] = weight[:, j] * s
    return gain, weight


def hadamard_by_bits(n):
    if n <= 0 or bin(n).count("1") != 1:
        raise ValueError(n)
    sign = [[(-1) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]
    return torch.tensor(sign, dtype=torch.float64) * n**-0.5


def rotate_by_rows(writer, reader, rotation):
    return torch.einsum("hk,hi->ki", rotation, writer), torch.einsum("oh,hk->ok", reader, rotation)


OTHER_RIGHT_ANSWERS = {
    "04.1": features_by_loops,
    "04.2": split_with_reciprocals,
    "04.3": smooth_by_channels,
    "04.4": hadamard_by_bits,
    "04.5": rotate_by_rows,
}


@pytest.mark.parametrize("exercise_id", OTHER_RIGHT_ANSWERS)
def test_another_right_answer_passes(exercise_id):
    found = verdict(exercise_id, OTHER_RIGHT_ANSWERS[exercise_id])
    assert found.status == "passed", found.text()


def test_every_exercise_has_another_right_answer_here():
    assert set(OTHER_RIGHT_ANSWERS) == set(exercises_of("04"))


def _told(exercise_id, function):
    found = verdict(exercise_id, function)
    assert found.status == "failed"
    return get(exercise_id).mutants[found.mutant].message if found.mutant is not None else ""


def test_counting_twice_is_told():
    def twice(x, weight, threshold):
        loud = (x.abs() >= threshold).any(dim=0)
        x_scale = (x * ~loud).abs().amax(dim=1, keepdim=True).clamp(min=127e-12) / 127
        w_scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=127e-12) / 127
        sums = (x / x_scale).round().double() @ (weight / w_scale).round().double().T
        return (sums * x_scale * w_scale.T).float() + x[:, loud] @ weight[:, loud].T

    assert "counted twice" in _told("04.2", twice)


def test_the_inverse_that_is_not_folded_is_told():
    def forgotten(gain, weight, x_max, alpha):
        return gain.clone(), smooth_by_channels(gain, weight, x_max, alpha)[1]

    assert "never divided" in _told("04.3", forgotten)


def test_a_matrix_that_is_not_orthonormal_is_told():
    def long_rows(n):
        return hadamard_by_bits(n) * n**0.5

    assert "length sqrt(n)" in _told("04.4", long_rows)


def test_a_forgotten_transpose_is_told():
    def forgotten(writer, reader, rotation):
        return torch.mm(rotation, writer), torch.mm(reader, rotation)

    assert "transpose is missing" in _told("04.5", forgotten)
