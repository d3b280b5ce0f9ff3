"""Small GGUF files for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import gguf as peer
import numpy as np

from labkit.formats.gguf.values import Kind, Value, array, boolean, f32, i32, string, u32, u64
from labkit.formats.gguf.writer import Declared, GgufWriter

METADATA: dict[str, Value] = {
    "general.architecture": string("llama"),
    "general.file_type": u32(15),
    "llama.rope.freq_base": f32(10_000.0),
    "answer": i32(-42),
    "large": u64(2**63 + 1),
    "flag": boolean(True),
    "tokens": array(Kind.STRING, ["", "a", "Ġdé", "東", "\0"]),
    "scores": array(Kind.FLOAT32, [0.5, -1.0]),
    "bits": array(Kind.BOOL, [True, False]),
    "wide": Value(Kind.FLOAT64, 1e300),
    "small": Value(Kind.INT8, -128),
    "empty": array(Kind.INT32, []),
}
TENSORS = [
    Declared("norm.weight", (64,), "F32"),
    Declared("blk.0.ffn_down.weight", (3, 64), "Q8_0"),
    Declared("half.weight", (2, 3, 5), "F16"),
    Declared("brain.weight", (7, 1), "BF16"),
]


def weights(declared: Declared, seed: int = 0) -> np.ndarray:
    """What a tensor of `TENSORS` holds."""
    return np.random.default_rng(seed).normal(size=declared.shape).astype(np.float32)


def blocks(declared: Declared) -> np.ndarray:
    """Its bytes, as the gguf package makes them: uint8 [rows, bytes of a row]."""
    rows = weights(declared).reshape(-1, declared.shape[-1])
    kind = peer.GGMLQuantizationType[declared.type_name]
    return peer.quants.quantize(rows, kind).view(np.uint8)


def write_example(path: Path, metadata: dict[str, Value] | None = None, **settings) -> Path:
    """A file with every kind of value and several types of tensors."""
    with GgufWriter(path, METADATA | (metadata or {}), TENSORS, **settings) as writer:
        for declared in TENSORS:
            writer.write(declared.name, blocks(declared))
    return path
