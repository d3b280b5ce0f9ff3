"""What a decoder is made of, and whether the parts fit each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.core.errors import ModelError, ShapeError
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_floats import LAST_FLOAT
from labkit.kernels.cpu.runs import RUN
from labkit.kernels.gguf_panels import GgufPanels
from labkit.quantize.lanes import LANES

if TYPE_CHECKING:
    from labkit.nn.decoder.decoder import Decoder


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes.

    Args:
        head_dim: columns of a head, a multiple of 16.
        epsilon: of RMSNorm.
        window: tokens that a token sees (Mistral's sliding window); 0: all before it.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    epsilon: float
    window: int = 0


@dataclass(frozen=True)
class Layer:
    """One block's weights; biases and head norms are float32, None where there are none."""

    q: GgufPanels
    k: GgufPanels
    v: GgufPanels
    o: GgufPanels
    gate: GgufPanels
    up: GgufPanels
    down: GgufPanels
    attention_norm: np.ndarray
    mlp_norm: np.ndarray
    qkv_bias: np.ndarray | None = None
    head_norms: tuple[np.ndarray, np.ndarray] | None = None

    def matrices(self) -> tuple[GgufPanels, ...]:
        """In the order of `step`'s table."""
        return self.q, self.k, self.v, self.o, self.gate, self.up, self.down


def require_fitting(model: Decoder) -> None:
    """Return if all parts of a decoder fit; nothing is checked once compiled code runs.

    Raises:
        ShapeError: parts that do not fit each other.
        ModelError: sizes that are no multiple of 16; activation bits other than 8 and 16.
    """
    shape, where = model.shape, "Decoder"
    sizes = (shape.hidden, shape.head_dim, shape.feed_forward)
    if any(size % LANES for size in sizes) or shape.heads % shape.kv_heads:
        raise ModelError(
            f"hidden {shape.hidden}, heads of {shape.head_dim}, feed-forward {shape.feed_forward}",
            where,
            "It runs multiples of 16; labkit.models.load has no such limit.",
        )
    if model.activation_bits not in (8, 16):
        raise ModelError(f"activations of {model.activation_bits} bits", where, "8 or 16.")
    if len(model.layers) != shape.layers or not model.layers:
        raise ShapeError(f"{len(model.layers)} layers, {shape.layers} expected", where)
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, inner = shape.hidden, shape.feed_forward
    rows = (heads, kv, kv, hidden, inner, inner, hidden)
    columns = (hidden, hidden, hidden, heads, hidden, hidden, inner)
    pairs = []
    for layer in model.layers:
        pairs += zip(layer.matrices(), zip(rows, columns, strict=True), strict=True)
    for end in (model.embedding, model.head):
        pairs.append((end, (shape.vocabulary, hidden)))
    for matrix, wanted in pairs:
        packed = NUMBERS[matrix.type_name] > LAST_FLOAT
        if matrix.shape != wanted or (packed and wanted[1] % RUN):
            raise ShapeError(f"a matrix of shape {matrix.shape}", where, f"Expected {wanted}.")
    table = (len(model.cosine), shape.head_dim // 2)
    if model.cosine.shape != table or model.sine.shape != table or not table[0]:
        raise ShapeError(f"RoPE's tables have shape {model.cosine.shape}", where)
    norms = [n for layer in model.layers for n in (layer.attention_norm, layer.mlp_norm)]
    for norm in [*norms, model.norm]:
        if norm.shape != (hidden,):
            raise ShapeError(f"a norm of shape {norm.shape}", where, f"Expected ({hidden},).")
    for layer in model.layers:
        first = model.layers[0]
        mixed = (layer.qkv_bias is None) != (first.qkv_bias is None)
        if mixed or (layer.head_norms is None) != (first.head_norms is None):
            raise ShapeError("biases or head norms in some layers only", where)
