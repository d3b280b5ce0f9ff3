"""One 4-bit layer of a bitsandbytes folder: from its tensors, and to them.

The names and shapes are in `labkit.formats.bitsandbytes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from labkit.core.codebook import BOOKS, CodebookTensor, NestedAbsmax
from labkit.core.errors import FormatError, LabkitError
from labkit.formats.bitsandbytes_state import QuantState, state_bytes
from labkit.quantize.dynamic_map import NESTED_BLOCK_SIZE

STATE = ".weight.quant_state.bitsandbytes__"
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def layer_parts(name: str, layer: CodebookTensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that stand for layer ``name``, by the names that the format has for them."""
    weight = f"{name}.weight"
    yield weight, layer.packed[:, None]
    nested = layer.absmax if isinstance(layer.absmax, NestedAbsmax) else None
    yield f"{weight}.absmax", layer.block_absmax() if nested is None else nested.codes
    yield f"{weight}.quant_map", torch.tensor(layer.book.values, dtype=torch.float32)
    if nested is not None:
        yield f"{weight}.nested_absmax", nested.absmax
        yield f"{weight}.nested_quant_map", nested.levels
    yield f"{name}{STATE}{layer.quant_type}", state_bytes(layer)


def layer_from(state: QuantState, parts: Mapping[str, torch.Tensor], where: str) -> CodebookTensor:
    """The layer whose tensors are ``parts`` ("weight", and those of `PARTS` that it has).

    Raises FormatError where they contradict ``state`` or each other; ``where`` names the layer.
    """
    wanted = {"weight", "absmax", "quant_map"}
    if state.nested_offset is not None:
        wanted |= {"nested_absmax", "nested_quant_map"}
    if set(parts) != wanted:
        raise FormatError(f"has {sorted(parts)}", where=where, remedy=f"Needed: {sorted(wanted)}.")
    _require_book(state.quant_type, parts["quant_map"], where)
    for part in wanted - {"weight"}:
        _require_finite(parts[part], f"{where}.{part}")
    # Storage in another dtype (bnb_4bit_quant_storage) is the same bytes under another name.
    packed = parts["weight"].contiguous().reshape(-1).view(torch.uint8)
    absmax: torch.Tensor | NestedAbsmax = parts["absmax"]
    try:
        if state.nested_offset is not None:
            absmax = NestedAbsmax(
                parts["absmax"],
                parts["nested_absmax"],
                parts["nested_quant_map"],
                state.nested_offset,
                NESTED_BLOCK_SIZE,
            )
        shape = torch.Size(state.shape)
        return CodebookTensor(
            packed, absmax, shape, state.quant_type, state.block_size, state.dtype
        )
    except LabkitError as error:
        raise FormatError(error.what, where=where, remedy=error.remedy) from error


def _require_book(quant_type: str, values: torch.Tensor, where: str) -> None:
    """bitsandbytes computes by the type's name and never looks at these numbers; nor do we."""
    levels = torch.tensor(BOOKS[quant_type].values)
    fits = values.shape == levels.shape and values.dtype == torch.float32
    if not fits or not torch.allclose(values, levels, rtol=0, atol=1e-4):
        raise FormatError(f"quant_map is not that of {quant_type}", where=where)


def _require_finite(part: torch.Tensor, where: str) -> None:
    if part.is_floating_point() and not bool(torch.isfinite(part).all()):
        raise FormatError("NaN or infinity", where=where, remedy="Fetch the folder again.")
