"""What the records of GPTQ and of AWQ have in common: the tokens, and how models are compared."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from labkit.data import load_corpus
from labkit.evaluate.perplexity import perplexity

GROUP = 128
SEQUENCES, LENGTH, THREADS = 32, 256, 1  # of stdlib-code, for both sides
_TOKENS = 16384  # of each text that perplexity is measured on


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of `model` with the weights that a peer returned; tensors of other names are left."""
    changed = copy.deepcopy(model)
    changed.load_state_dict(weights, strict=False)
    return changed


def perplexities(model: nn.Module, tokenizer: Any) -> dict[str, float]:
    """On held-out prose and code, by the name of the text."""
    return {
        name: perplexity(
            model, tokenizer, load_corpus(name, "heldout").text, LENGTH, max_tokens=_TOKENS
        ).value
        for name in ("stdlib-prose", "stdlib-code")
    }


def keep(path: Path, record: dict[str, Any]) -> None:
    """Write a record, and say where."""
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"saved: {path}", file=sys.stderr)
