"""Greedy decoding with a key and value cache, prefill and decode timed apart.

Reading a prompt (prefill) multiplies each weight with many tokens at once; writing (decode) reads
all weights for every single token. The first is bound by arithmetic, the second by memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labkit.core.errors import ModelError, ShapeError
from labkit.nn.decoder.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Step = Callable[[list[int]], int]


@dataclass(frozen=True)
class DecodeTimes:
    """Where the time of a decoding went.

    Args:
        prompt: tokens of the prompt.
        prefill: seconds from the prompt to the first new token.
        steps: seconds of each further token.
    """

    prompt: int
    prefill: float
    steps: list[float] = field(default_factory=list)

    @property
    def prefill_per_second(self) -> float:
        """Tokens of the prompt that were read in a second."""
        return self.prompt / self.prefill

    @property
    def decode_per_second(self) -> float:
        """Tokens that were written in a second, by the median step; 0 without a second token."""
        return 1 / statistics.median(self.steps) if self.steps else 0.0


@dataclass(frozen=True)
class Decoded:
    """What `decode` found.

    Args:
        tokens: new token ids, an end token included.
        cache_nbytes: bytes of the cache when it was done; 0 where it does not say.
    """

    tokens: list[int]
    times: DecodeTimes
    cache_nbytes: int = 0


def decode(
    model: PreTrainedModel | Decoder,
    ids: Sequence[int] | Tensor,
    new_tokens: int,
    cache: Any = None,
    *,
    stop: Sequence[int] | None = None,
) -> Decoded:
    """The likeliest next tokens of one sequence: `generate(do_sample=False)`, with its times.

    Args:
        model: a causal LM of transformers, `QuantLinear` inside or not, or a `Decoder`, which
            forgets what it has read before.
        ids: the prompt, at least one token.
        new_tokens: at most so many, at least 1.
        cache: None: the model's own; "fp16", "int8", "fp8" or "int4": a `KVCache` with room for
            all tokens; or an empty cache of transformers. A `Decoder` has a cache of its own.
        stop: tokens after which decoding ends; None: those of the model's generation settings,
            none for a `Decoder`.

    Raises:
        ShapeError: no prompt, no new token, or more than a `Decoder` has room for.
        ModelError: a cache for a `Decoder`.
        SchemeError: an unknown kind of cache.
    """
    prompt = [int(token) for token in (ids.reshape(-1) if isinstance(ids, Tensor) else ids)]
    if not prompt or new_tokens < 1:
        raise ShapeError(f"{len(prompt)} tokens, {new_tokens} new ones", "decode", "At least 1.")
    if isinstance(model, Decoder):
        if cache is not None:
            raise ModelError("a Decoder has a cache of its own", "decode", "Leave cache out.")
        model.reset()
        if len(prompt) + new_tokens - 1 > model.capacity:
            raise ShapeError(
                f"{len(prompt)} tokens and {new_tokens} new ones", "decode",
                f"The decoder has room for {model.capacity}.",
            )  # fmt: skip
        found = _greedy(lambda tokens: int(model.forward(tokens).argmax()), prompt, new_tokens,
                        set(stop or ()))  # fmt: skip
        return Decoded(*found, model.cache_nbytes)
    used = _cache(model, cache, len(prompt) + new_tokens)
    ends = _ends(model) if stop is None else set(stop)
    with torch.inference_mode():
        found = _greedy(_transformers_step(model, used), prompt, new_tokens, ends)
    return Decoded(*found, getattr(getattr(used, "cache", None), "nbytes", 0))


def _greedy(
    step: Step, prompt: list[int], new_tokens: int, ends: set[int]
) -> tuple[list[int], DecodeTimes]:
    began = time.perf_counter()
    tokens = [step(prompt)]
    times = DecodeTimes(len(prompt), time.perf_counter() - began)
    while len(tokens) < new_tokens and tokens[-1] not in ends:
        began = time.perf_counter()
        tokens.append(step(tokens[-1:]))
        times.steps.append(time.perf_counter() - began)
    return tokens, times


def _transformers_step(model: PreTrainedModel, cache: Any) -> Step:
    def step(tokens: list[int]) -> int:
        inputs = torch.tensor([tokens], device=model.device)
        out = model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    return step


def _cache(model: PreTrainedModel, cache: Any, capacity: int) -> Any:
    if cache is None:
        from transformers import DynamicCache

        return DynamicCache()
    if isinstance(cache, str):
        from labkit.nn.kv_cache import KVCache
        from labkit.nn.kv_cache_transformers import TransformersCache

        return TransformersCache(KVCache.for_model(model, cache, capacity))
    return cache


def _ends(model: PreTrainedModel) -> set[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
