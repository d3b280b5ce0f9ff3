"""Exercise 01.5: what a model takes on a GPU, weights and KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from labkit.core.memory import gib, kv_cache_bytes, weight_bytes
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial

Arguments = tuple[ModelShape, float, int, int, int]


def memory_of(
    shape: ModelShape, weight_bits: float, kv_bits: int, context: int, batch: int
) -> tuple[float, float]:
    """GiB of the weights and of the KV cache."""
    weights = weight_bytes(shape, weight_bits)
    return gib(weights), gib(kv_cache_bytes(shape, context, batch, kv_bits))


def _cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield MODEL_SHAPES["llama-2-7b"], 16, 16, 4096, 1
    yield MODEL_SHAPES["llama-2-70b"], 4.125, 8, 4096, 2  # 64 query heads, 8 KV heads
    # heads * head_dim is not the hidden size.
    yield ModelShape("narrow", 28, 1024, 3072, 16, 8, 128, 151936), 4, 16, 32768, 3
    for shape in MODEL_SHAPES.values():
        bits = float(rng.choice([2.5, 3.0, 4.125, 8.0, 16.0]))
        context, batch = int(rng.integers(1, 33)) * 1024, int(rng.integers(1, 9))
        yield shape, bits, int(rng.choice([4, 8, 16])), context, batch


def _query_heads_do_not_count(trial: Trial) -> str | None:
    """with twice the query heads the cache stays as it is: queries are not kept"""
    shape = trial["shape"]
    more = replace(shape, heads=2 * shape.heads)
    rest = [trial[name] for name in ("weight_bits", "kv_bits", "context", "batch")]
    cache = trial.call(more, *rest)[1]
    if abs(cache - trial.got[1]) <= 1e-9 * abs(trial.got[1]):
        return None
    return f"it goes from {trial.got[1]:.4g} to {cache:.4g} GiB"


def _weights_do_not_grow(trial: Trial) -> str | None:
    """a longer context changes the cache, not the weights"""
    shape, bits, kv_bits = trial["shape"], trial["weight_bits"], trial["kv_bits"]
    longer = trial.call(shape, bits, kv_bits, 2 * trial["context"], trial["batch"])
    if abs(longer[0] - trial.got[0]) <= 1e-9 * abs(trial.got[0]):
        return None
    return f"the weights go from {trial.got[0]:.4g} to {longer[0]:.4g} GiB"


MEMORY = Exercise(
    id="01.5",
    title="Weights and KV cache in GiB",
    minutes=8,
    difficulty=2,
    goal="say whether a model fits on a GPU before renting it",
    stub='''
    def memory_gib(shape, weight_bits, kv_bits, context, batch):
        """GiB of a model's weights and of its KV cache, as two floats (weights, cache).

        shape: has .parameters, .layers, .hidden, .heads, .kv_heads, .head_dim.
        The cache holds a key and a value of every token, for `batch` sequences of `context`
        tokens, each number at `kv_bits`. 1 GiB = 2**30 bytes.
        """
        ...
    ''',
    solution='''
    def memory_gib(shape, weight_bits, kv_bits, context, batch):
        """GiB of a model's weights and of its KV cache, as two floats (weights, cache).

        shape: has .parameters, .layers, .hidden, .heads, .kv_heads, .head_dim.
        The cache holds a key and a value of every token, for `batch` sequences of `context`
        tokens, each number at `kv_bits`. 1 GiB = 2**30 bytes.
        """
        weights = shape.parameters * weight_bits / 8
        per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim
        cache = per_token * context * batch * kv_bits / 8
        return weights / 2**30, cache / 2**30
    ''',
    reference=memory_of,
    answer_key=kv_cache_bytes,
    generate=_cases,
    bounds=(_query_heads_do_not_count, _weights_do_not_grow, matches_reference(rtol=1e-6)),
    mutants=(
        Mutant(
            "You count the keys but not the values: every token leaves one of each, hence 2.",
            swap=("2 * shape.layers", "shape.layers"),
        ),
        Mutant(
            "You count query heads. Only keys and values are kept; with grouped-query attention "
            "several query heads share one of them (Llama-2-70B: 64 heads, 8 KV heads).",
            swap=("shape.kv_heads", "shape.heads"),
        ),
        Mutant(
            "You gave GB (10**9 bytes). The driver of a GPU counts in GiB (2**30 bytes).",
            swap=("weights / 2**30, cache / 2**30", "weights / 1e9, cache / 1e9"),
        ),
        Mutant(
            "You forgot the layers: each of them has keys and values of its own.",
            swap=("2 * shape.layers * ", "2 * "),
        ),
        Mutant(
            "You forgot the batch: every sequence has a cache of its own, while all share the "
            "weights.",
            swap=("context * batch", "context"),
        ),
        Mutant(
            "You took the hidden size for the width of the keys. That is kv_heads * head_dim.",
            swap=("shape.kv_heads * shape.head_dim", "shape.hidden"),
        ),
        Mutant(
            "You stored the cache at the bits of the weights. 4-bit weights leave it as it was: "
            "its own precision is kv_bits.",
            swap=("batch * kv_bits", "batch * weight_bits"),
        ),
        Mutant(
            "You cached a score for every pair of tokens. Keys and values grow with the context, "
            "not with its square.",
            swap=("per_token * context", "per_token * context**2"),
        ),
        Mutant(
            "You counted bits as bytes: divide by 8.",
            swap=(("weight_bits / 8", "weight_bits"), ("kv_bits / 8", "kv_bits")),
        ),
    ),
    hints=(
        "What does one token leave behind in one layer? How many numbers is that?",
        "In one layer, one token: a key and a value for each KV head, of head_dim numbers each.",
        "Numbers: 2 * layers * kv_heads * head_dim * context * batch. Bytes: times bits, over 8.",
    ),
    allow=(ModelShape,),
)
