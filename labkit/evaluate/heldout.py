"""Perplexity on the held-out split of corpora, by name: what most measurements here begin with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedTokenizerBase

from labkit.data.corpora import load_corpus
from labkit.evaluate.perplexity import perplexity


def heldout_perplexities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Iterable[str],
    context: int,
    max_tokens: int,
) -> dict[str, float]:
    """Corpus (a name or a text file, as `load_corpus` takes it) to its perplexity.

    Args:
        context: tokens that are seen at a time.
        max_tokens: of each corpus, from its beginning.

    Raises:
        What `load_corpus` and `labkit.evaluate.perplexity.perplexity` raise.
    """
    return {
        name: perplexity(
            model, tokenizer, load_corpus(name, "heldout").text, context, max_tokens=max_tokens
        ).value
        for name in corpora
    }
