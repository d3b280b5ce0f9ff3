"""What every kernel checks before it touches memory, and the words it says so in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_operands(
    x: Tensor, bias: Tensor | None, shape: tuple[int, int], device: torch.device, what: str
) -> None:
    """`require_activations` and `require_bias` for a weight [out, in].

    Args:
        what: the operation and the weight, in words; its shape is added. That waits until something
            is wrong: between two weights each step of Python finds its caches empty.
    """
    rows, columns = shape
    fits = x.dtype in DTYPES and x.device == device and x.shape[-1:] == (columns,)
    if fits and bias is None:
        return
    where = f"{what} {tuple(shape)}"
    require_activations(x, columns, device, where)
    require_bias(bias, rows, device, where)


def require_activations(x: Tensor, columns: int, device: torch.device, where: str) -> None:
    """Return if ``x`` is [..., columns], float32, float16 or bfloat16, on ``device``.

    Raises:
        SchemeError: another dtype, or another device.
        ShapeError: another last axis.
    """
    if x.dtype not in DTYPES:
        raise SchemeError(
            f"x is {x.dtype}", where, "Expected float32, float16 or bfloat16 activations."
        )
    require_device("x", x, device, where)
    if x.ndim < 1 or x.shape[-1] != columns:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}", where, f"The weight takes [..., {columns}]."
        )


def require_bias(bias: Tensor | None, rows: int, device: torch.device, where: str) -> None:
    """Return if ``bias`` is None, or floating point [rows] on ``device``.

    Raises:
        SchemeError: another dtype, or another device.
        ShapeError: another shape.
    """
    if bias is None:
        return
    if not bias.dtype.is_floating_point:
        raise SchemeError(f"bias is {bias.dtype}", where, "Expected a floating-point bias.")
    require_device("bias", bias, device, where)
    require_shape("bias", bias, (rows,), where)


def require_device(name: str, tensor: Tensor, device: torch.device, where: str) -> None:
    """Return if ``tensor`` is on ``device``; else raise SchemeError."""
    if tensor.device.type != device.type:
        raise SchemeError(
            f"{name} is on {tensor.device}, the weight on {device}",
            where,
            "Move one of them with .to(device).",
        )


def require_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...], where: str) -> None:
    """Return if ``tensor`` has one of these dtypes; else raise SchemeError."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise SchemeError(f"{name} is {tensor.dtype}", where, f"Expected {names}.")


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Return if ``tensor`` has exactly this shape; else raise ShapeError."""
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}", where, f"Expected {shape}.")


def require_contiguous(name: str, tensor: Tensor, where: str) -> None:
    """Return if ``tensor`` is contiguous; else raise SchemeError."""
    if not tensor.is_contiguous():
        raise SchemeError(f"{name} is not contiguous", where, "Call .contiguous().")


def require_blocks(blocks: Tensor | np.ndarray, nbytes: int, where: str) -> None:
    """Return if ``blocks`` is uint8 [out, bytes], rows of whole blocks of ``nbytes`` bytes.

    Raises:
        SchemeError: another dtype.
        ShapeError: another shape.
    """
    if blocks.dtype not in (torch.uint8, np.uint8):
        raise SchemeError(f"blocks is {blocks.dtype}", where, "Expected uint8.")
    if blocks.ndim != 2 or blocks.shape[1] == 0 or blocks.shape[1] % nbytes:
        raise ShapeError(
            f"blocks have shape {tuple(blocks.shape)}",
            where,
            f"Expected [out, bytes], a multiple of {nbytes} bytes.",
        )


def product(
    x: Tensor,
    shape: tuple[int, int],
    bias: Tensor | None,
    multiply: Callable[..., Tensor],
    *weight: object,
) -> Tensor:
    """multiply(x as [tokens, in], *weight) + bias in x's dtype, [..., out]; ``shape``: [out, in].

    A kernel may count on a first token: one that wrote its sums to a row that was not there
    damaged the heap. What is as it should be is left out: each step takes as long as a panel.
    """
    rows, columns = shape
    flat = x.detach() if x.requires_grad else x
    flat = flat if x.ndim == 2 else flat.reshape(-1, columns)
    y = multiply(flat, *weight) if flat.shape[0] else torch.zeros(0, rows, device=x.device)
    return finish(y, x, rows, bias)


def result_dtype(x: Tensor, bias: Tensor | None) -> torch.dtype:
    """What a kernel had better return: x's dtype, or float32 if a bias is still to be added."""
    return x.dtype if bias is None else torch.float32


def finish(y: Tensor, x: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """``y`` [tokens, rows], the bias added, in x's dtype and in the shape [..., rows]."""
    if bias is not None:
        y = y + bias.to(y.dtype)
    y = y if y.dtype == x.dtype else y.to(x.dtype)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], rows)
