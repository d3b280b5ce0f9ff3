"""Where the memory goes when a model generates text: weights, KV cache, activations, overhead.

Sizes are in bytes. Makers of disks and models count in GB (10**9 bytes), drivers of GPUs in GiB
(2**30 bytes, 7 % more): ``gb`` and ``gib`` convert, and no function mixes the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.core.errors import SchemeError
from labkit.core.model_shapes import ModelShape

GB = 10**9
GIB = 2**30


def gb(size: float) -> float:
    """Bytes to gigabytes, 10**9 bytes each."""
    return size / GB


def gib(size: float) -> float:
    """Bytes to gibibytes, 2**30 bytes each."""
    return size / GIB


def weight_bytes(model: ModelShape | int, bits: float, embedding_bits: float | None = None) -> int:
    """Bytes of the weights at ``bits`` per weight, which need not be a whole number.

    model: a shape, or a parameter count. bits: the average with scales and zero-points counted,
    such as 4.125 for 4 bits and one 16-bit scale for every 128 weights.
    embedding_bits: None counts every parameter at ``bits``. A number is what most quantized
    checkpoints do: embedding and output projection have that many, norms and biases 16.

    Raises SchemeError for sizes that are not positive, and for embedding_bits without a shape.
    """
    _require_positive(bits=bits, embedding_bits=embedding_bits)
    if embedding_bits is None:
        count = model if isinstance(model, int) else model.parameters
        return math.ceil(count * bits / 8)
    if isinstance(model, int):
        raise SchemeError("embedding_bits was given with a parameter count", "", "Pass a shape.")
    total_bits = model.linear_parameters * bits
    total_bits += model.embedding_parameters * embedding_bits + model.vector_parameters * 16
    return math.ceil(total_bits / 8)


def kv_cache_bytes(shape: ModelShape, context: int, batch: int = 1, bits: float = 16) -> int:
    """Bytes of the keys and values of ``batch`` sequences of ``context`` tokens.

    Every layer keeps one key and one value (hence 2) a token for each KV head. Query heads do not
    count: with grouped-query attention ``kv_heads < heads``, and the cache shrinks by that ratio.
    bits: of one cached number, its share of any scale counted.

    Raises SchemeError for sizes that are not positive.
    """
    _require_positive(context=context, batch=batch, bits=bits)
    values = 2 * shape.layers * shape.kv_heads * shape.head_dim * context * batch
    return math.ceil(values * bits / 8)


def activation_bytes(
    shape: ModelShape, tokens: int, logits_tokens: int = 1, bits: float = 16, score_context: int = 0
) -> int:
    """Peak bytes of the intermediate results of one forward pass, without a gradient.

    Layers run one after the other and free what they used, so the peak is one layer's (the number
    of layers does not matter) or the logits, whichever is larger. What a token holds was counted in
    the Llama of transformers 5: in the MLP four vectors of the hidden size and three of
    the FFN's (gate, up, product); in attention three of the hidden size, four of all queries, one
    of all keys, one of all values; in both, cosine and sine of the rotary embedding.

    tokens: in this pass, all sequences together: the prompt's at first, then one a sequence.
    logits_tokens: tokens whose logits are kept: one a sequence to generate, all for a perplexity.
    score_context: 0 for a fused attention kernel. Otherwise the keys that each token attends to,
    whose scores are held at once in three copies (two of ``bits``, one float32).

    Raises SchemeError for sizes that are not positive.
    """
    _require_positive(tokens=tokens, logits_tokens=logits_tokens, bits=bits)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rotary = 2 * shape.head_dim
    mlp = tokens * (4 * shape.hidden + 3 * shape.ffn + rotary) * bits
    attention = tokens * (3 * shape.hidden + 4 * queries + 2 * keys + rotary) * bits
    attention += tokens * shape.heads * score_context * (2 * bits + 32)
    logits = (tokens * shape.hidden + logits_tokens * shape.vocab) * bits
    return math.ceil(max(mlp, attention, logits) / 8)


@dataclass(frozen=True)
class Runtime:
    """What an estimate assumes about the program that runs the model.

    kv_bits, activation_bits: of one number. embedding_bits: see weight_bytes.
    prefill_tokens: a longer prompt is read in pieces of this many tokens, all sequences together
    (serving engines do so; 2048 is a common setting).
    overhead_gib: what the GPU holds beside tensors. 1 GiB is an assumption: about half of it for
    the CUDA context and its libraries, the rest for workspaces and the allocator's rounding.
    Measure yours: the process's memory in nvidia-smi less ``torch.cuda.max_memory_allocated()``.
    """

    kv_bits: float = 16
    activation_bits: float = 16
    embedding_bits: float | None = None
    prefill_tokens: int = 2048
    overhead_gib: float = 1.0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what holds them."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """Their sum in bytes."""
        return self.weights + self.kv_cache + self.activations + self.overhead


def estimate(
    shape: ModelShape, bits: float, context: int, batch: int = 1, runtime: Runtime | None = None
) -> MemoryEstimate:
    """Memory to generate up to ``context`` tokens in each of ``batch`` sequences.

    bits: per weight. Raises SchemeError for sizes that are not positive.
    """
    runtime = runtime or Runtime()
    tokens = min(context * batch, runtime.prefill_tokens)
    return MemoryEstimate(
        weights=weight_bytes(shape, bits, runtime.embedding_bits),
        kv_cache=kv_cache_bytes(shape, context, batch, runtime.kv_bits),
        activations=activation_bytes(shape, tokens, batch, runtime.activation_bits),
        overhead=math.ceil(runtime.overhead_gib * GIB),
    )


def total_bytes(
    shape: ModelShape, bits: float, context: int, batch: int = 1, runtime: Runtime | None = None
) -> int:
    """The sum of estimate(...), in bytes."""
    return estimate(shape, bits, context, batch, runtime).total


def fits(
    shape: ModelShape,
    bits: float,
    gpu_gib: float,
    context: int,
    batch: int = 1,
    runtime: Runtime | None = None,
) -> bool:
    """Whether total_bytes(...) is at most ``gpu_gib`` GiB (labkit.core.gpus lists real ones)."""
    _require_positive(gpu_gib=gpu_gib)
    return total_bytes(shape, bits, context, batch, runtime) <= gpu_gib * GIB


def _require_positive(**sizes: float | None) -> None:
    for name, size in sizes.items():
        if size is not None and not (size > 0 and math.isfinite(size)):
            raise SchemeError(f"{name} is {size}", remedy="Use a positive number.")
