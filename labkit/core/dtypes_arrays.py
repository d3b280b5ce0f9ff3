"""Tensors, NumPy arrays and numbers in; the same kind out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = torch.Tensor | NDArray[Any] | float

# Elements converted at a time: the float64 temporaries then stay in the processor's cache.
_CHUNK = 1 << 16


def in_chunks(
    convert: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """``convert`` applied to x (any shape) a slice at a time; returns ``dtype`` of x's shape."""
    flat = x.reshape(-1)
    out = torch.empty(flat.shape, dtype=dtype, device=x.device)
    for start in range(0, flat.numel(), _CHUNK):
        out[start : start + _CHUNK] = convert(flat[start : start + _CHUNK])
    return out.reshape(x.shape)


def to_tensor(x: Array) -> torch.Tensor:
    """x as a detached tensor. Raises TypeError for what is not an array of real numbers."""
    if isinstance(x, torch.Tensor):
        tensor = x.detach()
    elif isinstance(x, np.ndarray | np.generic):
        tensor = torch.from_numpy(np.array(x, order="C"))
    elif isinstance(x, int):
        tensor = torch.tensor(x, dtype=torch.int64)
    elif isinstance(x, float):
        tensor = torch.tensor(x, dtype=torch.float64)
    else:
        raise TypeError(f"got {type(x).__name__}; pass a tensor, a NumPy array or a number")
    if tensor.is_complex():
        raise TypeError("got complex numbers; pass real ones")
    return tensor


def like_input(result: torch.Tensor, x: Array) -> Any:
    """result as the kind of thing that x is: a tensor, a NumPy array, or a Python number."""
    if isinstance(x, torch.Tensor):
        return result
    return result.numpy() if isinstance(x, np.ndarray) else result.item()
