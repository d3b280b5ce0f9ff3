"""A process that loads one model and says what memory that took: `python -m` it, with two paths.

The first model, a tiny one of the same format, is loaded and run beforehand: libraries, compiled
kernels and threads are in memory then, and what the second adds is the model itself.
"""

from __future__ import annotations

import gc
import json
import sys

import torch

from labkit.evaluate.resident import peak_bytes, reset_peak, resident_bytes
from labkit.models.freed import give_back
from labkit.models.packed import load_packed

_PROMPT = torch.arange(32)[None]


def main(tiny: str, path: str) -> None:
    """Print JSON: bytes that loading added, their peak meanwhile, and after some tokens."""
    _generated(load_packed(tiny)[0])
    gc.collect()
    give_back()
    fresh_peak = reset_peak()
    before = resident_bytes()
    model, _ = load_packed(path)
    loaded, peak = resident_bytes() - before, peak_bytes() - before
    _generated(model)
    found = {
        "resident_bytes": loaded,
        "peak_bytes": peak if fresh_peak else None,
        "running_bytes": resident_bytes() - before,
    }
    print(json.dumps(found))


def _generated(model: torch.nn.Module) -> None:
    """A prompt of 32 tokens and 4 more: the kernels for many tokens and for one have run."""
    model.generate(
        _PROMPT, attention_mask=torch.ones_like(_PROMPT), max_new_tokens=4, do_sample=False
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
