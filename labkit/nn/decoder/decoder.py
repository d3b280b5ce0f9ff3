"""A Llama that holds packed weights and a float16 cache, and answers with logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from labkit.core.errors import NonFiniteError, ShapeError
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.runs import RUN
from labkit.kernels.gguf_panels import GgufPanels
from labkit.nn.decoder import step
from labkit.nn.decoder.parts import Layer, Shape, require_fitting
from labkit.nn.decoder.team import Team
from labkit.quantize.lanes import LANES

_TOGETHER = 64  # tokens of a prompt that go through the layers at once


@dataclass(eq=False)
class Decoder:
    """Layers, embedding and head, ready to run.

    Args:
        embedding: rows are looked up in it.
        head: the same object where they are tied.
        cosine, sine: float32 [positions, head_dim / 2]: RoPE's tables; as many positions as the
            cache has room for.
        activation_bits: 8: x is rounded to int8 before it meets packed weights; 16: it stays
            float32.
        threads: None takes torch's number.

    Raises:
        ShapeError: parts that do not fit each other.
        ModelError: sizes that are no multiple of 16; activation bits other than 8 and 16.
    """

    shape: Shape
    layers: list[Layer]
    embedding: GgufPanels
    head: GgufPanels
    norm: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray
    activation_bits: int = 8
    threads: int | None = None
    length: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        require_fitting(self)
        self._team = Team(self.threads or torch.get_num_threads())
        shape, capacity = self.shape, len(self.cosine)
        size = (shape.layers, shape.kv_heads, capacity, shape.head_dim)
        self._caches = (np.zeros(size, np.uint16), np.zeros(size, np.uint16))
        self._table = np.array([_entry(matrix) for matrix in self._matrices()], np.int64)
        norms = [n for layer in self.layers for n in (layer.attention_norm, layer.mlp_norm)]
        self._norms = np.stack([*norms, self.norm]).astype(np.float32)
        self._extra = self._biases_and_tables()
        self._memory: dict[int, tuple] = {}

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for."""
        return len(self.cosine)

    @property
    def weight_nbytes(self) -> int:
        """Bytes of all matrices and norms, each once."""
        matrices = {id(matrix): matrix.nbytes for matrix in self._matrices()}
        matrices[id(self.embedding)] = self.embedding.nbytes
        return sum(matrices.values()) + self._norms.nbytes

    @property
    def cache_nbytes(self) -> int:
        """Bytes of the cache, empty room included."""
        return sum(cache.nbytes for cache in self._caches)

    def reset(self, length: int = 0) -> None:
        """Keep the first ``length`` tokens of the cache, and forget the others.

        Raises ShapeError for more than there are, or fewer than none.
        """
        if not 0 <= length <= self.length:
            raise ShapeError(f"{length} tokens to keep of {self.length}", "Decoder.reset")
        self.length = length

    def forward(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Append tokens; logits behind the last, float32 [vocabulary], or behind every one.

        Args:
            ids: token ids, at least one.
            every: return float32 [tokens, vocabulary].

        Raises:
            ShapeError: no token, more than the cache has room for, or ids beyond the vocabulary.
            NonFiniteError: a sum overflowed; the tokens are not in the cache then.
        """
        tokens = [int(token) for token in ids]
        where = "Decoder.forward"
        if not tokens or self.length + len(tokens) > self.capacity:
            raise ShapeError(
                f"{len(tokens)} tokens after {self.length}", where, f"Room: {self.capacity}."
            )
        if min(tokens) < 0 or max(tokens) >= self.shape.vocabulary:
            raise ShapeError("ids beyond the vocabulary", where, f"0 … {self.shape.vocabulary - 1}")
        found = []
        for first in range(0, len(tokens), _TOGETHER):
            part = tokens[first : first + _TOGETHER]
            found.append(self._run(part, len(part) if every else 1))
        return np.concatenate(found) if every else found[-1][0]

    def close(self) -> None:
        """Let its threads end; it still works, on one."""
        self._team.close()

    def _run(self, tokens: list[int], wanted: int) -> np.ndarray:
        x, buffers, work, scores, logits = self._room(len(tokens))
        for place, token in enumerate(tokens):
            x[place, : self.shape.hidden] = self.embedding.row(token)
        self._team.run(
            step.forward,
            self._table,
            self._norms,
            self._extra,
            self._caches,
            self.length,
            self.shape.window,
            np.float32(self.shape.epsilon),
            self.activation_bits == 8,
            x,
            buffers,
            work,
            scores,
            wanted,
            logits[:wanted],
        )
        if not np.isfinite(x).all():
            raise NonFiniteError(
                "NaN or infinity behind the layers", "Decoder", "Check weights and activations."
            )
        self.length += len(tokens)
        return logits[:wanted, : self.shape.vocabulary].copy()

    def _matrices(self) -> list[GgufPanels]:
        return [m for layer in self.layers for m in layer.matrices()] + [self.head]

    def _biases_and_tables(self) -> tuple:
        shape = self.shape
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        bias = np.zeros((shape.layers, width), np.float32)
        norms = np.zeros((shape.layers, 2, shape.head_dim), np.float32)
        for index, layer in enumerate(self.layers):
            if layer.qkv_bias is not None:
                bias[index] = layer.qkv_bias
            if layer.head_norms is not None:
                norms[index] = layer.head_norms
        has_bias = self.layers[0].qkv_bias is not None
        has_norms = self.layers[0].head_norms is not None
        tables = (np.ascontiguousarray(t, np.float32) for t in (self.cosine, self.sine))
        return (bias, has_bias, norms, has_norms, *tables)

    def _room(self, tokens: int) -> tuple:
        """Memory for so many tokens; kept for one token and for a full run of a prompt."""
        if tokens not in self._memory:
            for other in [n for n in self._memory if n not in (1, _TOGETHER)]:
                del self._memory[other]
            self._memory[tokens] = self._new_room(tokens)
        return self._memory[tokens]

    def _new_room(self, tokens: int) -> tuple:
        shape, count = self.shape, self._team.threads
        heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        widths = (shape.hidden, heads, kv, kv, heads, shape.feed_forward, shape.feed_forward)
        widest = max(shape.hidden, heads, shape.feed_forward)
        work = (
            np.zeros((tokens, widest), np.uint8),
            np.zeros((tokens, -(-widest // RUN)), np.float32),
            np.zeros((tokens, 2 * -(-widest // RUN)), np.float32),
            np.zeros((count, tokens, LANES), np.float32),
        )
        return (
            np.zeros((tokens, shape.hidden), np.float32),
            tuple(np.zeros((tokens, width), np.float32) for width in widths),
            work,
            np.zeros((count, self.capacity + LANES), np.float32),
            np.zeros((tokens, len(self.head.data) * LANES), np.float32),
        )


def _entry(matrix: GgufPanels) -> tuple[int, ...]:
    panels, size = len(matrix.data), matrix.data[:1].nbytes
    number = NUMBERS[matrix.type_name]
    return matrix.data.data_ptr(), panels, matrix.shape[1], size, number
