"""Inputs and bounds that the tests of several kernels share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from labkit.core.scheme import QuantScheme
from labkit.kernels import Int4Weight
from labkit.quantize import rtn

EPS32 = 2.0**-23


def int4_weight(rows, columns, group, symmetric, *, act_order=False, scale=torch.float16, seed=0):
    """An Int4Weight and the QuantizedTensor that it was made of."""
    torch.manual_seed(seed)
    scheme = QuantScheme(4, symmetric, "group" if group else "channel", group if group else None)
    quantized = rtn.quantize(torch.randn(rows, columns) * 0.1, scheme)
    changes = {"scale": quantized.scale.to(scale)}
    if act_order:
        changes["g_idx"] = (torch.randperm(columns) // group).to(torch.int32)
    quantized = dataclasses.replace(quantized, **changes)
    return Int4Weight.from_quantized(quantized), quantized


def product_bound(x: Tensor, weight: Tensor, out_dtype: torch.dtype, steps: float = 32) -> Tensor:
    """How far a float32 product x @ weight.T may lie from the exact one, float64.

    Sums of sixteen lanes and a few of them after each other: the error stays below ``steps``
    roundings of the sum of magnitudes (measured: a fraction of one), then the output's rounding.
    """
    magnitude = x.double().abs() @ weight.double().abs().T
    exact = x.double() @ weight.double().T
    return steps * EPS32 * magnitude + torch.finfo(out_dtype).eps * exact.abs() + 1e-30
