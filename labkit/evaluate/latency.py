"""How fast a model answers: time to read a prompt, and time for each token after it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Latency:
    """Medians over rounds, in seconds."""

    prefill_seconds: float
    seconds_per_token: float
    prompt_tokens: int
    rounds: int

    @property
    def tokens_per_second(self) -> float:
        return 1.0 / self.seconds_per_token


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # kernels run behind the clock's back otherwise
        torch.cuda.synchronize(device)


@torch.inference_mode()
def latency(
    model: PreTrainedModel, prompt_tokens: int = 128, new_tokens: int = 32, rounds: int = 5
) -> Latency:
    """Time the model on random tokens, batch 1, with its KV cache; one round to warm up."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=generator).to(device)
    prefill, decode = [], []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True)
        _wait(device)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            best = out.logits[:, -1:].argmax(dim=-1)
            out = model(input_ids=best, past_key_values=out.past_key_values, use_cache=True)
        _wait(device)
        prefill.append(middle - start)
        decode.append((time.perf_counter() - middle) / new_tokens)
    return Latency(
        statistics.median(prefill[1:]), statistics.median(decode[1:]), prompt_tokens, rounds
    )
