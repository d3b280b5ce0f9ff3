"""Quantize a folder in a process of its own, and say what each block took.

    python -m labkit.study.scale_measure gptq FOLDER WORK BLOCKS SEQUENCES LENGTH
    python -m labkit.study.scale_measure gguf FOLDER FILE

Prints lines of JSON: {"say": ...} while it works, {"result": ...} at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labkit.core.scheme import QuantScheme
from labkit.evaluate.resident import peak_bytes, reset_peak, resident_bytes
from labkit.models.block import Block
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import Gptq
from labkit.models.report import LayerReport
from labkit.models.sources import FolderSource
from labkit.models.to_gguf import to_gguf
from labkit.quantize import gguf, gptq
from labkit.quantize.hessian import InputStats

SCHEME = QuantScheme(4, True, "group", 128, narrow_range=False)
BATCH = 8


class _EnoughError(Exception):
    """As many blocks as were asked for are finished."""


class Watch:
    """Seconds and peak memory of one part of the work after the other."""

    def __init__(self) -> None:
        self.before = resident_bytes()
        self.parts: list[dict[str, float]] = []
        self._resets = reset_peak()
        self._began = time.perf_counter()

    def part_ends(self, **about: Any) -> None:
        """What was done since the last call is one part."""
        now = time.perf_counter()
        self.parts.append({"seconds": now - self._began, "peak_bytes": peak_bytes()} | about)
        self._resets = reset_peak() and self._resets
        self._began = now

    def found(self) -> dict[str, Any]:
        """All of it."""
        return {
            "before_bytes": self.before,
            "peak_bytes": max([part["peak_bytes"] for part in self.parts], default=self.before),
            # Where the system keeps the old peak, a block's is that of all before it too.
            "peak_of_each": self._resets,
        }


class Watched:
    """GPTQ that tells when a block is reached, and ends the run in front of block `blocks`."""

    name, next_inputs, needs_inputs = Gptq.name, Gptq.next_inputs, Gptq.needs_inputs

    def __init__(self, method: Gptq, blocks: int, reached: Callable[[int], None]) -> None:
        self._method, self._blocks, self._reached = method, blocks, reached

    def settings(self) -> dict[str, Any]:
        """Those of the method."""
        return self._method.settings()

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """The method's own. When it is called, all blocks before are finished and on the disk."""
        self._reached(block.index)
        if block.index == self._blocks:
            raise _EnoughError
        return self._method.quantize_block(block)


def measure_gptq(
    folder: Path, work: Path, blocks: int, sequences: int, length: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """GPTQ int4 in groups of 128 on the first `blocks` blocks, calibrated on random tokens.

    A block's part is everything between two blocks: it is quantized, its outputs are computed, it
    is written, the next one is read. "start" is what comes before the first block: opening the
    folder, the embeddings, reading the block.
    """
    _compile_gptq()
    watch = Watch()
    source = FolderSource(folder)
    watch.before = resident_bytes()  # the libraries are in memory now, and no weights yet
    vocabulary = source.model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (sequences, length), generator=generator)

    def reached(index: int) -> None:
        watch.part_ends(block=index - 1)
        _say_block(watch, index, tell)

    method = Watched(Gptq(SCHEME), blocks, reached)
    try:
        quantize_blockwise(source, method, ids, work=work, batch_size=BATCH)
        reached(len(source.blocks))
    except _EnoughError:
        pass
    start, *parts = watch.parts
    return watch.found() | {"start": start, "blocks": parts}


def measure_gguf(folder: Path, out: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The whole folder as a Q4_K_M file; a part for each block, and for what is no block's."""
    for type_name in ("Q4_K", "Q6_K"):
        gguf.quantize(torch.randn(1024, 1024), type_name)  # machine code is made before
    watch = Watch()

    def written(name: str, done: int, total: int) -> None:
        watch.part_ends(part=_owner(name))
        if done % 9 == 0:  # tensors of a block
            tell(f"Q4_K_M, {done} of {total} tensors")

    done = to_gguf(folder, out, "Q4_K_M", vocabulary=False, progress=written)
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in watch.parts:
        parts.setdefault(part["part"], []).append(part)
    return watch.found() | {
        "parts": [
            {
                "part": name,
                "seconds": sum(part["seconds"] for part in own),
                "peak_bytes": max(part["peak_bytes"] for part in own),
            }
            for name, own in parts.items()
        ],
        "file_bytes": done.nbytes,
        "bits_per_weight": done.bits_per_weight,
        "weights": sum(tensor.weights for tensor in done.tensors),
        "types": dict(done.count()),
    }


def _owner(tensor: str) -> str:
    """ "blk.3" of "blk.3.attn_q.weight", "output" of "output.weight"."""
    words = tensor.split(".")
    return ".".join(words[:2]) if words[0] == "blk" else words[0]


def _say_block(watch: Watch, index: int, tell: Callable[[str], None]) -> None:
    part = watch.parts[-1]
    what = "start" if index == 0 else f"GPTQ, block {index - 1}"
    tell(f"{what}: {part['seconds']:.1f} s, peak {part['peak_bytes'] / 1e9:.2f} GB")


def _compile_gptq() -> None:
    """Machine code is made before the clock runs: a model of 32 blocks waits for it once."""
    x = torch.randn(256, 128)
    gptq.solve(torch.randn(8, 128), InputStats(128).add(x), SCHEME)


def main(words: list[str]) -> None:
    """Measure what the words ask for."""

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    def tell(text: str) -> None:
        say(say=text)

    kind, folder, place, *numbers = words
    if kind == "gptq":
        blocks, sequences, length = map(int, numbers)
        found = measure_gptq(Path(folder), Path(place), blocks, sequences, length, tell)
    else:
        found = measure_gguf(Path(folder), Path(place), tell)
    say(result=found | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main(sys.argv[1:])
