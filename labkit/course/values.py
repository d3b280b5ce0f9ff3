"""Values that go into and come out of a learner's function: copied, compared, shown small."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

SHOWN_ELEMENTS = 16


def snapshot(value: Any) -> Any:
    """A copy that shares no memory with `value`; tensors lose their graph, subclasses their class.

    Subclasses of tensors and arrays could answer comparisons as they please.
    """
    if isinstance(value, torch.Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            return value.detach().as_subclass(torch.Tensor).clone()
    if isinstance(value, np.ndarray):
        return np.array(value, copy=True, subok=False)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple(snapshot(item) for item in value)
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return value


def is_number(value: Any) -> bool:
    """A Python or numpy number or bool, or a tensor or array without axes."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, numbers.Number | np.bool_)


def is_array(value: Any) -> bool:
    """A torch tensor or a numpy array."""
    return isinstance(value, torch.Tensor | np.ndarray)


def fields_of(value: Any) -> dict[str, Any] | None:
    """The parts of a dict, list, tuple or dataclass by label; None for anything else."""
    if isinstance(value, dict):
        return {f"[{key!r}]": item for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {f"[{index}]": item for index, item in enumerate(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f".{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
    return None


def to_numpy(value: Any) -> np.ndarray:
    """Numbers, tensors and arrays as a numpy array; bfloat16 and float8 are widened."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (
            (value.float() if value.dtype.itemsize <= 2 and value.is_floating_point() else value)
            .resolve_conj()
            .numpy()
        )
    return np.asarray(value)


def same(left: Any, right: Any, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Equal in structure and shape, and in value to rtol and atol; NaN equals NaN.

    The number types may differ: 1, 1.0 and tensor(1) are the same.
    """
    left_fields, right_fields = fields_of(left), fields_of(right)
    if left_fields is not None or right_fields is not None:
        if left_fields is None or right_fields is None or left_fields.keys() != right_fields.keys():
            return False
        return all(same(left_fields[key], right_fields[key], rtol, atol) for key in left_fields)
    if not (is_number(left) or is_array(left)) or not (is_number(right) or is_array(right)):
        return type(left) is type(right) and _same_object(left, right, rtol, atol)
    a, b = to_numpy(left), to_numpy(right)
    if a.shape != b.shape:
        return False
    if rtol == 0.0 and atol == 0.0:
        nan = a.dtype.kind in "fc" and b.dtype.kind in "fc"
        return bool(np.array_equal(a, b, equal_nan=nan))
    return bool(np.all(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)))


def _same_object(left: Any, right: Any, rtol: float, atol: float) -> bool:
    if isinstance(left, torch.nn.Module):
        return same(left.state_dict(), right.state_dict(), rtol, atol)
    if type(left).__eq__ is object.__eq__:  # compares identities, and this is about contents
        return same(getattr(left, "__dict__", {}), getattr(right, "__dict__", {}), rtol, atol)
    return bool(left == right)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, array or other atom inside a value, with its path: ("[0].scale", tensor)."""
    parts = fields_of(value)
    if parts is None:
        yield path, value
        return
    for label, item in parts.items():
        yield from leaves(item, path + label)


def size(value: Any) -> int:
    """How many numbers a value holds: the failing input shown is the smallest one."""
    return sum(int(to_numpy(leaf).size) if is_array(leaf) else 1 for _, leaf in leaves(value))


def type_name(value: Any) -> str:
    """What a value is, in a learner's words."""
    if isinstance(value, torch.Tensor):
        return f"torch tensor of shape {tuple(value.shape)}, {str(value.dtype)[6:]}"
    if isinstance(value, np.ndarray):
        return f"numpy array of shape {value.shape}, {value.dtype}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def show(value: Any) -> str:
    """A value on few lines: all of a small array, the corner of a large one."""
    if is_array(value):
        array = to_numpy(value)
        if array.ndim == 0:
            return f"{array.item():.6g}" if array.dtype.kind == "f" else str(array.item())
        shape = "x".join(map(str, array.shape))
        kind = str(value.dtype).removeprefix("torch.")
        options = {"threshold": SHOWN_ELEMENTS, "edgeitems": 2, "precision": 4}
        text = np.array2string(array, separator=", ", **options)
        return f"{kind} {shape}\n{text}" if "\n" in text else f"{kind} {shape} {text}"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    parts = fields_of(value)
    if parts is None or not parts:
        text = repr(value)
        return text if len(text) <= 200 else text[:197] + "..."
    if all(is_number(item) for item in parts.values()) and isinstance(value, list | tuple):
        items = [show(item) for item in value[:SHOWN_ELEMENTS]]
        more = ", ..." if len(value) > SHOWN_ELEMENTS else ""
        return f"{type(value).__name__} ({', '.join(items)}{more})"
    return "\n".join(f"{label} {show(item)}" for label, item in parts.items())
