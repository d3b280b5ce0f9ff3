"""A Llama of given sizes with random weights as a GGUF file, written block by block.

How fast a model runs does not depend on what its weights are, as long as they are ordinary. So a
few hundred rows of each length are drawn and quantized, and every matrix is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.formats.gguf.mix import FILE_TYPES, file_type
from labkit.formats.gguf.values import Value, f32, string, u32
from labkit.formats.gguf.writer import Declared, GgufWriter
from labkit.quantize import gguf

_POOL = 256  # rows that are drawn of each length
_AT_A_TIME = 4096  # rows that are written at a time


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama; the head is a matrix of its own."""

    hidden: int = 2048
    layers: int = 16
    feed_forward: int = 8192
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 32_000
    context: int = 2048

    @property
    def head_dim(self) -> int:
        """Columns of a head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Weights of all matrices."""
        return sum(rows * columns for _, (rows, columns) in self.matrices())

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """GGUF's names and shapes, in the order of a file."""
        hidden, kv = self.hidden, self.kv_heads * self.head_dim
        yield "token_embd", (self.vocabulary, hidden)
        for layer in range(self.layers):
            prefix = f"blk.{layer}"
            yield f"{prefix}.attn_q", (hidden, hidden)
            yield f"{prefix}.attn_k", (kv, hidden)
            yield f"{prefix}.attn_v", (kv, hidden)
            yield f"{prefix}.attn_output", (hidden, hidden)
            yield f"{prefix}.ffn_gate", (self.feed_forward, hidden)
            yield f"{prefix}.ffn_up", (self.feed_forward, hidden)
            yield f"{prefix}.ffn_down", (hidden, self.feed_forward)
        yield "output", (self.vocabulary, hidden)

    def norms(self) -> Iterator[str]:
        """GGUF's names of the norms."""
        for layer in range(self.layers):
            yield f"blk.{layer}.attn_norm"
            yield f"blk.{layer}.ffn_norm"
        yield "output_norm"


ONE_B = LlamaShape()
QUICK = LlamaShape(512, 4, 1536, 8, 4, 8192, 1024)


def write(path: Path, shape: LlamaShape, type_name: str, seed: int = 0) -> int:
    """Write the model with every matrix in ``type_name``; return the bytes of the file.

    Norms are ones. The file has no vocabulary: programs take token ids.

    Raises FormatError for a file that is there already, StorageError where there is no room.
    """
    rng = np.random.default_rng(seed)
    matrices = dict(shape.matrices())
    declared = [Declared(f"{name}.weight", size, type_name) for name, size in matrices.items()]
    declared += [Declared(f"{name}.weight", (shape.hidden,), "F32") for name in shape.norms()]
    pools = {
        columns: _pool(rng, columns, type_name) for columns in (shape.hidden, shape.feed_forward)
    }
    with GgufWriter(path, _metadata(shape, type_name), declared) as writer:
        for name, (rows, columns) in matrices.items():
            for first in range(0, rows, _AT_A_TIME):
                chosen = rng.integers(0, _POOL, min(_AT_A_TIME, rows - first))
                writer.write(f"{name}.weight", pools[columns][chosen])
        for name in shape.norms():
            writer.write(f"{name}.weight", np.ones((1, shape.hidden), np.float32))
        return writer.nbytes


def _pool(rng: np.random.Generator, columns: int, type_name: str) -> np.ndarray:
    """Quantized random rows, of a size that keeps activations about 1: uint8 [rows, bytes]."""
    rows = rng.standard_normal((_POOL, columns), np.float32) / np.float32(columns**0.5)
    return gguf.quantize(rows, type_name)


def _metadata(shape: LlamaShape, type_name: str) -> dict[str, Value]:
    counts = {
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "rope.dimension_count": shape.head_dim,
    }
    return {
        "general.architecture": string("llama"),
        "general.name": string("random"),
        "general.file_type": u32(FILE_TYPES[file_type(type_name)].number),
        **{f"llama.{key}": u32(count) for key, count in counts.items()},
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.freq_base": f32(10000.0),
        "tokenizer.ggml.model": string("none"),
    }
