"""LLM.int8(): loud columns of the input are multiplied in floating point, the rest in int8.

Of the columns of x [tokens, in] a few hold values far above the rest, in nearly every token. They
are found anew in every call: a column with any |x| >= threshold is an *outlier feature*.

    y = x[:, loud] @ w[:, loud].T                               floating point, a few columns
      + s_x s_w * (q_x[:, rest] @ q_w[:, rest].T)               int8, summed in int32

with a scale s_x for each row of x, taken from its quiet columns alone, and a scale s_w for each
output channel of w. Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for
Transformers at Scale", section 3 (threshold 6.0).

The weight is stored in int8 only, so its loud columns are dequantized, as bitsandbytes does; the
paper's figure takes them from the 16-bit weight (`original=`). bitsandbytes takes a row's scale
from all its values below the threshold, those in loud columns included; here, as in the paper,
those columns are gone before the scale is chosen, so that our scale is never the larger one.

6.0 was chosen for language models whose hidden states lie within a few units of zero. Where a
layer's inputs are larger, every column reaches it, and the product is one in floating point with
an int8 weight: right, but no integer arithmetic is left. `labkit.nn.LLMInt8Linear` counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import rtn
from labkit.quantize.activation import Dynamic
from labkit.quantize.int8_matmul import linear as integer_linear

THRESHOLD = 6.0
WEIGHT = QuantScheme(8, symmetric=True, granularity="channel")
ACTIVATION = QuantScheme(8, symmetric=True, granularity="token")


def quantize(weight: Tensor) -> QuantizedTensor:
    """The weight [out, in] in int8, with a float32 scale for each output channel.

    Raises NonFiniteError, ShapeError, SchemeError as `labkit.quantize.rtn.quantize`.
    """
    return rtn.quantize(weight, WEIGHT, scale_dtype=torch.float32)


def outlier_columns(x: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """The columns of x [..., in] in which any |x| reaches `threshold`: int64, ascending.

    Raises:
        SchemeError: a threshold of 0 or less, which every column reaches (math.inf: none does).
        NonFiniteError: x holds NaN or infinity.
    """
    if not threshold > 0:
        raise SchemeError(
            f"threshold {threshold}",
            where="LLM.int8()",
            remedy="Every column reaches it. The paper uses 6.0; math.inf splits nothing off.",
        )
    require_finite(x, "activations")
    return torch.nonzero((x.detach().abs() >= threshold).flatten(0, -2).any(dim=0)).flatten()


def outlier_features(
    hidden: Tensor,
    threshold: float = THRESHOLD,
    layer_share: float = 0.25,
    token_share: float = 0.06,
) -> Tensor:
    """The feature dimensions that are loud all over a model: int64, ascending.

    A feature is loud in a layer when |x| reaches `threshold` there in at least `token_share` of the
    tokens; it is an outlier feature when that is so in at least `layer_share` of the layers. This
    is the paper's definition (section 4.1), with its figures as defaults; it looks for what is
    systematic, where `outlier_columns` takes whatever a single input brings.

    Args:
        hidden: floating point [layers, tokens, features].

    Raises:
        ShapeError: another number of axes, or nothing in one of them.
        SchemeError: a threshold of 0 or less, or a share outside (0, 1].
        NonFiniteError: NaN or infinity.
    """
    if hidden.ndim != 3 or hidden.numel() == 0:
        raise ShapeError(
            f"hidden states of shape {tuple(hidden.shape)}", remedy="[layers, tokens, features]."
        )
    if not threshold > 0 or not (0 < layer_share <= 1 and 0 < token_share <= 1):
        raise SchemeError(
            f"threshold {threshold}, layer share {layer_share}, token share {token_share}",
            remedy="The threshold is positive; a share lies above 0 and is at most 1.",
        )
    require_finite(hidden, "hidden states")
    loud = (hidden.detach().abs() >= threshold).to(torch.float64).mean(dim=1) >= token_share
    return torch.nonzero(loud.to(torch.float64).mean(dim=0) >= layer_share).flatten()


def linear(
    x: Tensor,
    weight: QuantizedTensor,
    bias: Tensor | None = None,
    *,
    threshold: float = THRESHOLD,
    original: Tensor | None = None,
) -> Tensor:
    """x @ weight.T + bias by decomposition, float32 [..., out].

    Args:
        x: floating point [..., in].
        weight: as `quantize` gives it, [out, in].
        bias: floating point [out].
        threshold: |x| from which a column counts as loud.
        original: the floating-point weight [out, in], if its loud columns are to be exact.

    Raises:
        ShapeError: columns that do not match.
        SchemeError: a threshold of 0 or less.
        NonFiniteError: x holds NaN or infinity.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"x has {x.shape[-1]} columns, the weight {tuple(weight.shape)}", where="LLM.int8()"
        )
    x = x.float()
    loud = outlier_columns(x, threshold)
    quiet = _others(loud, x.shape[-1])
    y = x.new_zeros(()) if bias is None else bias.float()
    if len(quiet):
        q_x = Dynamic(ACTIVATION)(x.index_select(-1, quiet))
        y = integer_linear(q_x, _columns(weight, quiet)) + y
    if len(loud):
        exact = _columns(weight, loud).dequantize() if original is None else original[:, loud]
        y = x.index_select(-1, loud) @ exact.float().T + y
    return y


def _others(loud: Tensor, columns: int) -> Tensor:
    quiet = torch.ones(columns, dtype=torch.bool, device=loud.device)
    quiet[loud] = False
    return quiet.nonzero().flatten()


def _columns(weight: QuantizedTensor, columns: Tensor) -> QuantizedTensor:
    codes = weight.codes.index_select(1, columns)
    return QuantizedTensor(codes, weight.scale, None, weight.scheme)
