"""How fast llama.cpp reads a prompt and then writes token after token, timed apart.

It runs as it is shipped: float16 keys and values, flash attention where it takes it, weights
repacked for the processor, activations rounded to 8 bits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from labkit.peers.llama_cpp import LlamaCpp


class LlamaDecode(LlamaCpp):
    """A GGUF file in llama.cpp, which goes on from its cache; a context manager.

    Args:
        context: tokens that the cache has room for.
        threads: for all work.

    Raises:
        PeerMissingError: llama-cpp-python is not installed.
        PeerError: llama.cpp refuses the file.
    """

    def __init__(self, path: Path | str, context: int, threads: int) -> None:
        super().__init__(path, context, threads, exact=False)
        self._length = 0

    def prefill(self, ids: Sequence[int]) -> tuple[int, float]:
        """Forget everything and read a prompt: the likeliest next token, and the seconds."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._length = 0
        return self._go_on(ids)

    def decode(self, token: int, count: int) -> tuple[list[int], list[float]]:
        """``count`` likeliest tokens, one after another from ``token`` on; seconds of each."""
        found, seconds = [], []
        for _ in range(count):
            token, spent = self._go_on([token])
            found.append(token)
            seconds.append(spent)
        return found, seconds

    def _go_on(self, ids: Sequence[int]) -> tuple[int, float]:
        began = time.perf_counter()
        logits = self._decode(list(map(int, ids)), first=self._length, every=False)
        token = int(logits[-1].argmax())
        self._length += len(ids)
        return token, time.perf_counter() - began
