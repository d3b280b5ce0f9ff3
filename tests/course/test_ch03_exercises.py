"""Chapter 03: other right answers pass, and each known misconception is told by its own message."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from labkit.course.checking import evaluate
from labkit.course.registry import exercises_of, get


def verdict(exercise_id, function):
    return evaluate(get(exercise_id), function, np.random.default_rng(7))


def channel_scales_by_rows(weight, bits):
    rows = [max(abs(float(v)) for v in row) / (2 ** (bits - 1) - 1) or 1.0 for row in weight]
    return torch.tensor(rows)[:, None]


def sqnr_in_numpy(reference, approximation):
    x, y = reference.double().numpy(), approximation.double().numpy()
    noise = np.mean((x - y) ** 2)
    return np.float64(10) * np.log10(np.mean(x**2) / noise) if noise else math.inf


def cosine_by_parts(x, y):
    a, b = torch.linalg.vector_norm(x), torch.linalg.vector_norm(y)
    return float((x * y).sum() / (a * b)) if a * b else float(a == b)


def groups_one_by_one(weight, bits, group_size):
    if weight.shape[1] % group_size != 0:
        raise ValueError
    qmax = 2 ** (bits - 1) - 1
    codes, scales = [], []
    for part in weight.split(group_size, dim=1):
        scale = part.abs().max(dim=1, keepdim=True).values / qmax
        scale[scale == 0] = 1
        scales.append(scale)
        codes.append((part * (1 / scale)).round().clamp(-qmax, qmax).int())
    return torch.cat(codes, 1), torch.cat(scales, 1)


def bits_added_up(rows, columns, bits, granularity, group_size, symmetric):
    sharing = {"tensor": rows * columns, "channel": columns, "group": group_size}[granularity]
    return bits + (16 if symmetric else 16 + bits) / sharing


def linear_in_float64(x_codes, x_scale, w_codes, w_scale):
    size = w_codes.shape[1] // w_scale.shape[1]
    y = 0
    for k in range(w_scale.shape[1]):
        part = slice(k * size, (k + 1) * size)
        sums = x_codes[:, part].double() @ w_codes[:, part].double().T
        y = y + sums * w_scale[:, k].double()
    return (y * x_scale).float()


OTHER_RIGHT_ANSWERS = {
    "03.1": channel_scales_by_rows,
    "03.2": sqnr_in_numpy,
    "03.3": cosine_by_parts,
    "03.4": groups_one_by_one,
    "03.5": bits_added_up,
    "03.6": linear_in_float64,
}


@pytest.mark.parametrize("exercise_id", OTHER_RIGHT_ANSWERS)
def test_another_right_answer_passes(exercise_id):
    found = verdict(exercise_id, OTHER_RIGHT_ANSWERS[exercise_id])
    assert found.status == "passed", found.text()


def test_every_exercise_has_another_right_answer_here():
    assert set(OTHER_RIGHT_ANSWERS) == set(exercises_of("03"))


def _told(exercise_id, function):
    found = verdict(exercise_id, function)
    assert found.status == "failed"
    return get(exercise_id).mutants[found.mutant].message if found.mutant is not None else ""


def test_a_swapped_axis_is_told_on_square_matrices_too():
    def columns_stood_up(weight, bits):
        largest = weight.abs().max(dim=0).values.reshape(-1, 1)
        scale = largest / (2 ** (bits - 1) - 1)
        return torch.where(scale == 0, torch.ones_like(scale), scale)

    assert "maxima of the columns" in _told("03.1", columns_stood_up)


def test_a_ragged_group_that_is_dropped_is_told():
    def dropped(weight, bits, group_size):
        kept = weight.shape[1] // group_size * group_size
        return groups_one_by_one(weight[:, :kept], bits, group_size)

    assert "dropped the columns" in _told("03.4", dropped)


def test_scales_inside_the_sum_are_told_whatever_the_order_of_the_sum():
    def one_product_at_a_time(x_codes, x_scale, w_codes, w_scale):
        size = w_codes.shape[1] // w_scale.shape[1]
        x, y = x_codes.float() * x_scale, 0
        for column in range(w_codes.shape[1]):
            w = w_codes[:, column].float() * w_scale[:, column // size]
            y = y + x[:, column, None] * w[None, :]
        return y

    assert "scales inside the sum" in _told("03.6", one_product_at_a_time)


def test_the_library_call_is_no_answer():
    def borrowed(x, y):
        return float(functional.cosine_similarity(x.flatten(), y.flatten(), dim=0))

    found = verdict("03.3", borrowed)
    assert found.status == "failed" and "answer key" in found.text()
