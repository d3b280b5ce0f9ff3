"""Products of 8-bit activations with an 8-bit weight (W8A8)."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.kernels import checks, choose
from labkit.kernels.int8_weight import Int8Weight


def int8_linear(
    codes: Tensor,
    scale: Tensor,
    weight: Int8Weight,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """(codes * scale) @ weight.T + bias, [..., out] in ``dtype``; summed exactly in int32.

    Args:
        codes: int8 [..., in], as `quantize_tokens` gives them.
        scale: float32 [..., 1], one for each token.
        bias: floating point [out].
        dtype: of the result: float32, float16 or bfloat16.

    Raises:
        SchemeError: dtypes, devices or an implementation that cannot be.
        ShapeError: parts that do not fit each other.
    """
    where = f"int8_linear, weight {tuple(weight.shape)}"
    rows, columns = weight.shape
    device = weight.codes.device
    checks.require_dtype("codes", codes, (torch.int8,), where)
    checks.require_dtype("scale", scale, (torch.float32,), where)
    checks.require_device("codes", codes, device, where)
    checks.require_device("scale", scale, device, where)
    if codes.ndim < 1 or codes.shape[-1] != columns:
        raise ShapeError(f"codes have shape {tuple(codes.shape)}", where, f"[..., {columns}] fits.")
    checks.require_shape("scale", scale, (*codes.shape[:-1], 1), where)
    checks.require_bias(bias, rows, device, where)
    if dtype not in checks.DTYPES:
        raise SchemeError(f"dtype is {dtype}", where, "Expected float32, float16 or bfloat16.")
    kernel = choose.module("int8", device, implementation)
    flat = codes.reshape(-1, columns).contiguous()
    if not flat.shape[0]:  # a kernel may count on a first token
        return torch.zeros(*codes.shape[:-1], rows, dtype=dtype, device=device)
    y = kernel.linear(flat, scale.reshape(-1), weight)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.to(dtype).reshape(*codes.shape[:-1], rows)
