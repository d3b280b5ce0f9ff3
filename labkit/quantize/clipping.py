"""Clip a block's range before its grid is chosen: the largest weights lose, all others gain.

A grid that reaches to the largest weight of a block spends its codes on the space between. With the
range cut to r times the largest |w| the step shrinks by r, and what lies beyond is clipped. The
best r is searched on ten values from 1.0 down to 0.55, for each block of each row.

What is minimised is the error that the block causes in its layer's output. With the Gram matrix of
the inputs, G = (1/N) Σ_t x_t x_tᵀ, it needs no inputs: for the error d of one block of columns

    (1/N) Σ_t (d · x_t)²  =  dᵀ G d          (rows and columns of G that belong to the block)

Without inputs G is the identity, and the error is that of the weights. Source of the search: Lin
et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and
Acceleration" and its code; AutoAWQ evaluates the same sum on 512 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.affine import choose_qparams
from labkit.core.errors import SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.granularity import from_blocks, scale_shape, to_blocks
from labkit.core.scheme import QuantScheme

STEPS = 10
LARGEST_CUT = 0.5
"""AutoAWQ's grid: 1.0, 0.95 … 0.55, ten steps towards cutting half of the range."""


def round_to_grid(
    blocks: Tensor, scheme: QuantScheme, scale_dtype: torch.dtype = torch.float16
) -> Tensor:
    """Return finite `blocks` ([..., block size], float32) rounded, each along its last axis.

    What `rtn.quantize` and `dequantize` give, bit for bit, without the integers between: searches
    call it hundreds of times.
    """
    lo, hi = torch.aminmax(blocks, dim=-1, keepdim=True)
    scale, zero_point = choose_qparams(
        lo,
        hi,
        scheme.bits,
        scheme.symmetric,
        narrow_range=scheme.narrow_range,
        scale_dtype=scale_dtype,
    )
    scale = scale.float()
    codes = torch.div(blocks, scale).round_()
    if scheme.symmetric:
        return codes.clamp_(scheme.qmin, scheme.qmax).mul_(scale)
    zero = zero_point.float()
    return codes.add_(zero).clamp_(scheme.qmin, scheme.qmax).sub_(zero).mul_(scale)


def rounded(
    weight: Tensor, scheme: QuantScheme, scale_dtype: torch.dtype = torch.float16
) -> Tensor:
    """Return a finite float32 `weight` [out, in] rounded to nearest and back."""
    blocks = round_to_grid(to_blocks(weight, scheme), scheme, scale_dtype)
    return from_blocks(blocks, scheme, weight.shape)


def search_clip(
    weight: Tensor,
    scheme: QuantScheme,
    gram: Tensor | None = None,
    *,
    steps: int = STEPS,
    scale_dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Return the largest |w| that each block should keep, float32, in the shape of scales.

    Args:
        weight: [out, in], floating point.
        scheme: any granularity; "tensor" only without `gram`, for its rows share one bound.
        gram: float32 [in, in], (1/N) Σ x xᵀ of the layer's inputs; None for the error of the
            weights themselves.
        steps: how many ratios are tried, from 1.0 (no clipping, kept on a tie) downwards.

    Raises:
        NonFiniteError: weight or gram hold NaN or infinity.
        ShapeError: gram is not [in, in].
        GroupSizeError: the group size does not divide in.
        SchemeError: granularity "tensor" with a gram, or a scale beyond `scale_dtype`.
    """
    blocks = to_blocks(weight.detach().float(), scheme)
    require_finite(blocks, "weight")
    if scheme.granularity == "tensor" and gram is not None:
        raise SchemeError(
            "one clip bound for all rows has no error a row",
            where=f"clip search, {scheme}",
            remedy='Use granularity "channel" or "group", or search without inputs.',
        )
    pieces = None if gram is None else _diagonal_blocks(gram, weight.shape[1], blocks.shape[1])
    largest = blocks.abs().amax(dim=1, keepdim=True)
    best, least = largest.clone(), None
    for step in range(steps):
        bound = largest * (1 - LARGEST_CUT * step / STEPS)
        error = round_to_grid(blocks.clamp(-bound, bound), scheme, scale_dtype).sub_(blocks)
        loss = _block_loss(error, pieces)
        if least is None:
            least = loss
            continue
        better = loss < least
        best = torch.where(better, bound, best)
        least = torch.minimum(loss, least)
    return best.reshape(scale_shape(weight.shape, scheme))


def clip(weight: Tensor, bound: Tensor, scheme: QuantScheme) -> Tensor:
    """Return `weight` [out, in] with each block cut to ±`bound` (in the shape of scales).

    Raises ShapeError when the bounds are not those of this weight and scheme.
    """
    expected = scale_shape(weight.shape, scheme)
    if tuple(bound.shape) != expected:
        raise ShapeError(
            f"bounds of shape {tuple(bound.shape)} for a weight of shape {tuple(weight.shape)}",
            where=str(scheme),
            remedy=f"One bound a block has the shape {expected}.",
        )
    column = bound.reshape(-1, 1)
    return from_blocks(to_blocks(weight, scheme).clamp(-column, column), scheme, weight.shape)


def _diagonal_blocks(gram: Tensor, columns: int, size: int) -> Tensor:
    """The squares [columns / size, size, size] along the diagonal of gram [columns, columns]."""
    if tuple(gram.shape) != (columns, columns):
        raise ShapeError(
            f"a Gram matrix of shape {tuple(gram.shape)} for {columns} columns",
            where="clip search",
            remedy=f"Expected [{columns}, {columns}].",
        )
    require_finite(gram, "Gram matrix")
    parts = gram.reshape(columns // size, size, columns // size, size)
    index = torch.arange(columns // size, device=gram.device)
    return parts[index, :, index]


def _block_loss(error: Tensor, pieces: Tensor | None) -> Tensor:
    """dᵀ G d of each block: error [rows * groups, size], pieces [groups, size, size] -> [.., 1]."""
    if pieces is None:
        return error.square().sum(dim=1, keepdim=True)
    groups, size = pieces.shape[:2]
    by_group = error.reshape(-1, groups, size).transpose(0, 1)
    products = torch.bmm(by_group, pieces).mul_(by_group).sum(dim=2)
    return products.T.reshape(-1, 1)
