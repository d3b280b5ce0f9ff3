"""Is an answer the right kind of thing: type, shape, number type, finite? Says what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from labkit.course.values import fields_of, is_array, is_number, leaves, to_numpy, type_name

KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "c": "complex numbers"}


def structure_problem(got: Any, expected: Any, name: str = "the answer") -> str | None:
    """How `got` differs from `expected` in type, length, shape or kind of number.

    A number may be a Python number or a tensor without axes; lists and tuples are one kind.
    """
    if is_number(expected):
        return _number_problem(got, expected, name)
    if is_array(expected):
        return _array_problem(got, expected, name)
    parts = fields_of(expected)
    if parts is None:
        if isinstance(got, type(expected)):
            return None
        return f"{name} should be a {type(expected).__name__}; it is a {type_name(got)}"
    got_parts = fields_of(got)
    if got_parts is None:
        return f"{name} should be a {type_name(expected)}; it is a {type_name(got)}"
    if list(parts) != list(got_parts):
        return f"{name} should have the parts {_labels(parts)}; it has {_labels(got_parts)}"
    for label, part in parts.items():
        problem = structure_problem(got_parts[label], part, f"{name}{label}")
        if problem:
            return problem
    return None


def _labels(parts: dict[str, Any]) -> str:
    return ", ".join(parts) or "none"


def _number_problem(got: Any, expected: Any, name: str) -> str | None:
    if not is_number(got):
        return f"{name} should be one number; it is a {type_name(got)}"
    wanted, kind = _kind(expected), _kind(got)
    if wanted != kind and not (wanted == "floats" and kind == "integers"):
        return f"{name} should be one of the {wanted}; {got!r} is one of the {kind}"
    return None


def _array_problem(got: Any, expected: Any, name: str) -> str | None:
    library = "torch tensor" if isinstance(expected, torch.Tensor) else "numpy array"
    wanted_type = torch.Tensor if isinstance(expected, torch.Tensor) else np.ndarray
    if not isinstance(got, wanted_type):
        return f"{name} should be a {library}; it is a {type_name(got)}"
    if tuple(got.shape) != tuple(expected.shape):
        return f"{name} should have shape {tuple(expected.shape)}; it has {tuple(got.shape)}"
    if _kind(got) != _kind(expected):
        kind = str(got.dtype).removeprefix("torch.")
        return f"{name} should hold {_kind(expected)}; its dtype is {kind}"
    return None


def _kind(value: Any) -> str:
    return KINDS.get(to_numpy(value).dtype.kind, "other things")


def non_finite_problem(got: Any, expected: Any) -> str | None:
    """Where `got` holds NaN or infinity and `expected` does not. Structures must agree."""
    for (path, ours), (_, right) in zip(leaves(got), leaves(expected), strict=True):
        if not (is_number(ours) or is_array(ours)) or to_numpy(ours).dtype.kind not in "fc":
            continue
        values, wanted = to_numpy(ours), to_numpy(right)
        wrong = ~np.isfinite(values) & np.isfinite(wanted)
        if wrong.any():
            index = [int(i) for i in np.argwhere(wrong)[0]]
            what = "NaN" if np.isnan(values[tuple(index)]) else "infinity"
            place = f" at {index}" if index else ""
            return f"the answer{path} is {what}{place}, where a finite number is right"
    return None
