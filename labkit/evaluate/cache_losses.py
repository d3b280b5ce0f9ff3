"""What a rounded cache costs, token by token: a model that reads its keys and values from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from labkit.core.errors import ShapeError


@torch.inference_mode()
def cached_logits(
    model: PreTrainedModel,
    ids: Tensor,
    new_cache: Callable[[int], Cache] | None = None,
    batch_size: int = 4,
) -> Tensor:
    """Logits float32 [sequences, tokens, vocabulary], on the CPU.

    Args:
        ids: [sequences, tokens], all of one length.
        new_cache: number of sequences -> a cache for them; None computes without one. Every token
            attends to what the cache returns, its own key and value included.

    Raises ShapeError for anything but a matrix of token ids.
    """
    if ids.ndim != 2 or not ids.numel():
        raise ShapeError(f"ids have shape {tuple(ids.shape)}", remedy="Give [sequences, tokens].")
    found = []
    for batch in ids.to(model.device).split(batch_size):
        settings = {"past_key_values": new_cache(len(batch))} if new_cache else {}
        logits = model(batch, use_cache=new_cache is not None, **settings).logits
        found.append(logits.float().cpu())
    return torch.cat(found)


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihoods in nats, [sequences, tokens - 1].

    Column t holds the loss of the token that has t + 1 tokens before it.
    """
    return functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:].cpu(), reduction="none")


def token_divergences(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) in nats, [sequences, tokens]; finer than a difference of losses."""
    p, q = (part.log_softmax(dim=-1) for part in (reference, logits))
    return (p.exp() * (p - q)).sum(dim=-1)
