"""Products with a weight in GGUF blocks."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels import checks, choose
from labkit.quantize.gguf_types import block_type


def gguf_linear(
    x: Tensor,
    blocks: Tensor,
    type_name: str,
    bias: Tensor | None = None,
    *,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ weight.T + bias, [..., out] in x's dtype; the weight is read as a GGUF file holds it.

    Args:
        x: float32, float16 or bfloat16 [..., in].
        blocks: uint8 [out, bytes of a row], contiguous.
        type_name: "Q4_K", "Q4_0", "Q8_0", … (`labkit.quantize.gguf_types`).
        bias: floating point [out].

    Raises:
        SchemeError: an unknown type, or dtypes, devices or an implementation that cannot be.
        ShapeError: blocks, x or bias that do not fit each other.
    """
    where = f"gguf_linear, {type_name} {tuple(blocks.shape)}"
    kind = block_type(type_name)
    checks.require_blocks(blocks, kind.nbytes, where)
    checks.require_contiguous("blocks", blocks, where)
    shape = len(blocks), blocks.shape[1] // kind.nbytes * kind.weights
    checks.require_operands(x, bias, shape, blocks.device, f"gguf_linear, {type_name}")
    kernel = choose.module("gguf", blocks.device, implementation)
    return checks.product(x, shape, bias, kernel.linear, blocks, type_name)
