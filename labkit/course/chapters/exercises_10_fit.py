"""Exercise 10.1: how many sequences a memory holds, scales of a quantized cache counted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.core.memory import GIB, kv_cache_bytes
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial

Arguments = tuple[float, ModelShape, int, int, int]


def sequences(free_gib: float, shape: ModelShape, context: int, bits: int, scale_bits: int) -> int:
    """Whole sequences of `context` tokens that fit."""
    one = kv_cache_bytes(shape, context, bits=bits + scale_bits / shape.head_dim)
    return int(free_gib * GIB // one)


def _cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield 7.3, MODEL_SHAPES["llama-3-8b"], 4096, 16, 0
    yield 37.9, MODEL_SHAPES["llama-2-70b"], 1024, 8, 32  # 64 query heads, 8 KV heads
    yield 11.7, MODEL_SHAPES["qwen2.5-0.5b"], 1000, 4, 32
    yield 0.1, MODEL_SHAPES["llama-2-7b"], 4096, 16, 0  # not one
    for shape in MODEL_SHAPES.values():
        context = int(rng.integers(2, 40)) * 100 + 17
        bits, scale_bits = [(16, 0), (8, 32), (4, 32)][int(rng.integers(0, 3))]
        yield float(rng.uniform(20, 70)), shape, context, bits, scale_bits


def _twice_the_context(trial: Trial) -> str | None:
    """twice the context leaves room for half as many sequences, rounded down"""
    shape, context = trial["shape"], trial["context"]
    rest = trial["bits"], trial["scale_bits"]
    fewer = trial.call(trial["free_gib"], shape, 2 * context, *rest)
    if fewer == trial.got // 2:
        return None
    return f"{trial.got} fit at {context} tokens and {fewer} at {2 * context}"


_DOC = '''
    def sequences_that_fit(free_gib, shape, context, bits, scale_bits):
        """How many whole sequences of `context` tokens fit into `free_gib` GiB of cache.

        shape: has .layers, .hidden, .heads, .kv_heads, .head_dim. Each number takes `bits`; each
        vector of head_dim numbers has one scale of `scale_bits` (0: none). 1 GiB = 2**30 bytes.
        """'''

FIT = Exercise(
    id="10.1",
    title="Sequences that fit",
    minutes=8,
    difficulty=2,
    goal="say how many users a GPU serves once the weights are loaded",
    stub=f"{_DOC}\n        ...\n    ",
    solution=f"""{_DOC}
        vectors = 2 * shape.layers * shape.kv_heads * context
        one = vectors * (shape.head_dim * bits + scale_bits) / 8
        return int(free_gib * 2**30 // one)
    """,
    reference=sequences,
    answer_key=kv_cache_bytes,
    generate=_cases,
    bounds=(_twice_the_context, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You count keys but not values: each token leaves one of each in every layer.",
            swap=("2 * shape.layers", "shape.layers"),
        ),
        Mutant(
            "You count query heads. Queries are used once and forgotten; keys and values stay, "
            "one for each of the kv_heads.",
            swap=("shape.kv_heads", "shape.heads"),
        ),
        Mutant(
            "You forgot the scales. One of 32 bits for 128 numbers of 4 bits is 6 % of the cache.",
            swap=(" + scale_bits", ""),
        ),
        Mutant(
            "You gave every number a scale of its own; a whole vector of head_dim numbers "
            "shares one.",
            swap=(
                "(shape.head_dim * bits + scale_bits)",
                "shape.head_dim * (bits + scale_bits)",
            ),
        ),
        Mutant(
            "You counted one scale a token. Each head of each layer has its own key, its own value "
            "and so its own scale.",
            swap=(
                "vectors * (shape.head_dim * bits + scale_bits) / 8",
                "(vectors * shape.head_dim * bits + context * scale_bits) / 8",
            ),
        ),
        Mutant(
            "You took GiB for 10**9 bytes: a GiB has 7 % more.",
            swap=("2**30", "10**9"),
        ),
        Mutant(
            "You took bits for bytes: divide by 8.",
            swap=("scale_bits) / 8", "scale_bits)"),
        ),
        Mutant(
            "You rounded up: the last sequence does not fit as a whole.",
            swap=("int(free_gib * 2**30 // one)", "math.ceil(free_gib * 2**30 / one)"),
        ),
        Mutant(
            "You divided by the size of one token: a sequence has `context` of them.",
            swap=("shape.kv_heads * context", "shape.kv_heads"),
        ),
        Mutant(
            "You took the hidden size for the width of a key. A key has head_dim numbers, and "
            "there are kv_heads of them.",
            swap=("(shape.head_dim * bits", "(shape.hidden * bits"),
        ),
    ),
    hints=(
        "What does one token leave behind in one layer, in vectors of head_dim numbers?",
        "Vectors: 2 * layers * kv_heads * context. Each takes head_dim * bits + scale_bits bits.",
        "int(free_gib * 2**30 // bytes_of_one_sequence).",
    ),
    allow=(ModelShape,),
)
