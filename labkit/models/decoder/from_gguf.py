"""A decoder out of a GGUF file: its blocks, rearranged into panels, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labkit.core.errors import ModelError
from labkit.formats.gguf.names import naming_for
from labkit.formats.gguf.permute import inverse, row_order
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.settings_reading import Source, config_of
from labkit.kernels.gguf_panels import GgufPanels
from labkit.models.decoder.settings import capacity_of, rope_tables, shape_of
from labkit.nn.decoder.decoder import Decoder
from labkit.nn.decoder.parts import Layer

_MATRICES = dict(
    q="attn_q",
    k="attn_k",
    v="attn_v",
    o="attn_output",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
)


def decoder_from_gguf(
    path: Path | str,
    *,
    capacity: int | None = None,
    activation_bits: int = 8,
    threads: int | None = None,
) -> Decoder:
    """Read the model in ``path``: tensor by tensor, so the file is in memory once.

    Args:
        capacity: tokens that the cache has room for; None: the model's context, at most 2048.
        activation_bits, threads: see `Decoder`.

    Raises:
        FormatError: a damaged or hostile file.
        SchemeError: tensors of a type that the decoder does not run.
        ModelError: an architecture or settings that it does not run.
    """
    from transformers import AutoConfig

    with GgufFile(path) as file:
        naming = naming_for(file.metadata.get("general.architecture"), str(path))
        shapes = {name: info.shape for name, info in file.tensors.items()}
        source = Source(file.metadata, shapes, naming.architecture, str(path), file.read)
        settings = config_of(source, naming)
        if settings.get("mlp_bias") or "blk.0.attn_output.bias" in shapes:
            raise ModelError("biases beside those of q, k and v", str(path))
        config = AutoConfig.for_model(**settings)
        shape = shape_of(config, str(path))
        room = capacity_of(config, capacity)
        heads = dict(rope_q=shape.heads, rope_k=shape.kv_heads)
        reader = _Reader(file, naming, heads)
        embedding = reader.matrix("token_embd")
        return Decoder(
            shape=shape,
            layers=[reader.layer(index) for index in range(shape.layers)],
            embedding=embedding,
            head=reader.matrix("output") if "output.weight" in shapes else embedding,
            norm=reader.floats("output_norm.weight"),
            activation_bits=activation_bits,
            threads=threads,
            **dict(zip(("cosine", "sine"), rope_tables(config, room, str(path)), strict=True)),
        )


class _Reader:
    """A file's tensors, the order of their rows undone."""

    def __init__(self, file: GgufFile, naming, heads: dict[str, int]) -> None:
        self._file, self._naming, self._heads = file, naming, heads

    def matrix(self, name: str) -> GgufPanels:
        name = f"{name}.weight"
        blocks = self._file.raw(name)
        type_name = self._file.tensors[name].type_name
        return GgufPanels.from_blocks(blocks, type_name, self._order(name, len(blocks)))

    def floats(self, name: str) -> np.ndarray:
        return self._file.read(name)

    def layer(self, index: int) -> Layer:
        prefix = f"blk.{index}."
        here = self._file.tensors
        bias = norms = None
        if f"{prefix}attn_q.bias" in here:
            bias = np.concatenate([self._bias(f"{prefix}attn_{part}.bias") for part in "qkv"])
        if f"{prefix}attn_q_norm.weight" in here:
            norms = tuple(self.floats(f"{prefix}attn_{part}_norm.weight") for part in "qk")
        return Layer(
            **{field: self.matrix(prefix + name) for field, name in _MATRICES.items()},
            attention_norm=self.floats(f"{prefix}attn_norm.weight"),
            mlp_norm=self.floats(f"{prefix}ffn_norm.weight"),
            qkv_bias=bias,
            head_norms=norms,
        )

    def _bias(self, name: str) -> np.ndarray:
        bias = self.floats(name)
        order = self._order(name, len(bias))
        return bias if order is None else bias[order]

    def _order(self, name: str, rows: int) -> np.ndarray | None:
        change = self._naming.change(name)
        order = row_order(change, rows, self._heads.get("rope_q", 1), self._heads.get("rope_k", 1))
        return None if order is None else inverse(order)
