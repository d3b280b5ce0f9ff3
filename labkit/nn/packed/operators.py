"""Products and look-ups as operators: torch.compile keeps them in its graph, and looks into none.

A compiled graph holds tensors and plain values, so an operator takes a packed weight as its parts
and its recipe. Outside of a graph `labkit.nn.QuantLinear` calls the weight itself, which skips
reading the recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.formats.inputs import InputQuantization
from labkit.kernels import int8_linear
from labkit.kernels.cpu import tiled
from labkit.nn.packed.form import Form
from labkit.nn.packed.int8 import Int8Form
from labkit.nn.packed.weight import form_from, shape_from


def multiply(
    form: Form, x: Tensor, bias: Tensor | None, activation: str, input_scale: Tensor | None
) -> Tensor:
    """x @ weight.T + bias.

    Args:
        activation: "16" or "8" bits; or how a checkpoint rounds inputs, "int token",
            "float tensor", … (`labkit.formats.inputs.InputQuantization`).
        input_scale: of the latter, where it is known beforehand.
    """
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], form.shape[0])
    if activation in ("16", "8"):
        return form.linear(x, bias, int(activation))
    kind, granularity = activation.split()
    inputs = InputQuantization(kind, granularity, input_scale)
    if kind == "int" and isinstance(form, Int8Form):
        codes, scale = inputs.codes(x)
        return int8_linear(codes, scale, form.weight, bias, dtype=x.dtype)
    return form.linear(inputs.apply(x), bias, 16)


_LINEAR = (
    "(Tensor x, Tensor[] parts, str recipe, Tensor? bias, str activation, Tensor? input_scale)"
    " -> Tensor"
)


@torch.library.custom_op("labkit::packed_linear", mutates_args=(), schema=_LINEAR)
def packed_linear(x, parts, recipe, bias, activation, input_scale):
    """`multiply`, with the weight as parts and recipe. A gradient flows to x, and to nothing else:
    that of the dequantized weight, as if x were not rounded (straight-through)."""
    return multiply(form_from(recipe, parts), x, bias, activation, input_scale)


@packed_linear.register_fake
def _(x, parts, recipe, bias, activation, input_scale):
    return x.new_empty(*x.shape[:-1], shape_from(recipe)[0])


def _remember(ctx, inputs, output) -> None:
    x, parts, recipe, *_ = inputs
    ctx.save_for_backward(*parts)
    ctx.recipe, ctx.dtype = recipe, x.dtype


def _backward(ctx, gradient):
    parts = list(ctx.saved_tensors)
    form = form_from(ctx.recipe, parts)
    rows, columns = form.shape
    flat = gradient.reshape(-1, rows).to(torch.float32)
    found = torch.zeros(len(flat), columns, device=flat.device)
    step = tiled.rows_of_a_tile(columns)
    for first in range(0, rows, step):
        found += flat[:, first : first + step] @ form.rows(slice(first, first + step))
    back = found.to(ctx.dtype).reshape(*gradient.shape[:-1], columns)
    return back, [None] * len(parts), None, None, None, None


packed_linear.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op(
    "labkit::packed_rows",
    mutates_args=(),
    schema="(Tensor index, Tensor[] parts, str recipe, ScalarType dtype) -> Tensor",
)
def packed_rows(index, parts, recipe, dtype):
    """Rows of a packed weight: index int64 [...] -> ``dtype`` [..., in]."""
    return look_up(form_from(recipe, parts), index, dtype)


@packed_rows.register_fake
def _(index, parts, recipe, dtype):
    return index.new_empty(*index.shape, shape_from(recipe)[1], dtype=dtype)


def look_up(form: Form, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a packed weight: index int64 [...] -> ``dtype`` [..., in].

    Raises ShapeError for a row that is not there; on a card that would make the host wait, and
    torch says so in its own way.
    """
    if index.numel() == 0:
        return torch.empty(*index.shape, form.shape[1], dtype=dtype, device=index.device)
    if index.device.type == "cpu":
        first, last = (int(end) for end in index.aminmax())
        if first < 0 or last >= form.shape[0]:
            wrong = first if first < 0 else last
            raise ShapeError(f"row {wrong}", form.label, f"There are 0 … {form.shape[0] - 1}.")
    found = form.rows(index.reshape(-1).to(torch.int64)).to(dtype)
    return found.reshape(*index.shape, form.shape[1])
