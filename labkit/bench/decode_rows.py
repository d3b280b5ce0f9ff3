"""A random model of a billion weights, ours and llama.cpp's on the same file: prefill and decode.

Both read the same prompt and go on greedily. All contestants of a type take turns in one process;
seconds are medians over rounds (prefill: of a prompt) and over all tokens (decode: of a token).
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from labkit.bench import random_gguf
from labkit.bench.random_gguf import LlamaShape
from labkit.bench.rows import BenchRow, Effort, named
from labkit.core.errors import PeerMissingError
from labkit.models.decode import decode
from labkit.models.decoder import decoder_from_gguf
from labkit.nn.decoder.decoder import Decoder
from labkit.peers.llama_decode import LlamaDecode

TYPES = ("Q4_0", "Q4_K")
_SHAPE, _QUICK_SHAPE = random_gguf.ONE_B, random_gguf.QUICK
_PROMPT, _NEW = 128, 33


class Side(Protocol):
    """What is timed: (tokens, seconds of the prompt, seconds of each further token)."""

    def __call__(self, prompt: list[int], new: int) -> tuple[list[int], float, list[float]]: ...


@dataclass
class Contestant:
    """One side, and what it did so far."""

    name: str
    run: Side
    prefill: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def turn(self, prompt: list[int], new: int) -> None:
        """One round: a token to wake its threads, then the prompt and what follows."""
        self.run(prompt[:1], 2)
        self.tokens, prefill, steps = self.run(prompt, new)
        self.prefill.append(prefill)
        self.steps += steps


def rows(effort: Effort) -> Iterator[BenchRow | PeerMissingError]:
    """Yield the rows as they are measured; the peer's error in their place where it is missing.

    Files are written into a temporary folder, one type after another: 2.3 GB for 16 bits.
    """
    shape = _QUICK_SHAPE if effort.quick else _SHAPE
    prompt = np.random.default_rng(0).integers(0, shape.vocabulary, _PROMPT).tolist()
    new = 9 if effort.quick else _NEW
    with tempfile.TemporaryDirectory(prefix="labkit-decode-") as folder:
        sixteen = Path(folder) / "F16.gguf"
        size = random_gguf.write(sixteen, shape, "F16")
        wide = decoder_from_gguf(sixteen, capacity=256, threads=effort.threads)
        ours = Contestant("labkit, F16", _our_side(wide, 16))
        yield from _beside_llama("F16", size, shape, sixteen, ours, [], prompt, new, effort)
        sixteen.unlink()
        for type_name in TYPES:
            path = Path(folder) / f"{type_name}.gguf"
            size = random_gguf.write(path, shape, type_name)
            decoder = decoder_from_gguf(path, capacity=256, threads=effort.threads)
            eight = Contestant("", _our_side(decoder, 8))
            others = [
                Contestant("labkit, float32 activations", _our_side(decoder, 16)),
                Contestant("labkit, F16", _our_side(wide, 16)),
            ]
            yield from _beside_llama(
                type_name, size, shape, path, eight, others, prompt, new, effort
            )
            decoder.close()
            del decoder, eight, others
            gc.collect()
            path.unlink()


def _our_side(decoder: Decoder, bits: int) -> Side:
    def run(prompt: list[int], new: int) -> tuple[list[int], float, list[float]]:
        decoder.activation_bits = bits
        found = decode(decoder, prompt, new)
        return found.tokens, found.times.prefill, found.times.steps

    return run


def _llama_side(llama: LlamaDecode) -> Side:
    def run(prompt: list[int], new: int) -> tuple[list[int], float, list[float]]:
        token, prefill = llama.prefill(prompt)
        tokens, steps = llama.decode(token, new - 1)
        return [token, *tokens], prefill, steps

    return run


def _beside_llama(
    type_name: str,
    size: int,
    shape: LlamaShape,
    path: Path,
    ours: Contestant,
    others: list[Contestant],
    prompt: list[int],
    new: int,
    effort: Effort,
) -> Iterator[BenchRow | PeerMissingError]:
    """Time all of them in turns; rows of ours beside llama.cpp, then beside the others."""
    try:
        llama = LlamaDecode(path, 256, effort.threads)
    except PeerMissingError as error:
        yield error
        return
    with llama:
        peer = Contestant(named("llama-cpp-python"), _llama_side(llama))
        everyone = [ours, *others, peer]
        for one in everyone:
            one.run(prompt, 2)  # it compiles, and touches all its memory
        for _ in range(effort.rounds):
            for one in everyone:
                one.turn(prompt, new)
    what = f"{type_name}, {shape.parameters / 1e9:.2f} billion weights"
    yield from _pair(what, size, ours, peer, prompt, effort)
    for one in others:
        yield from _pair(what, size, ours, one, prompt, effort)
    if others:  # 4 bits whose weights are widened, beside 16 bits that need no widening
        named_ours = f"{what}, float32 activations"
        yield from _pair(named_ours, size, others[0], others[1], prompt, effort)


def _pair(
    what: str, size: int, ours: Contestant, peer: Contestant, prompt: list[int], effort: Effort
) -> Iterator[BenchRow]:
    same = sum(a == b for a, b in zip(ours.tokens, peer.tokens, strict=True))
    agree = f"{same} of {len(ours.tokens)} tokens the same"
    prefill, peer_prefill = statistics.median(ours.prefill), statistics.median(peer.prefill)
    step, peer_step = statistics.median(ours.steps), statistics.median(peer.steps)
    speed = f"{len(prompt) / prefill:.1f} tokens/s, theirs {len(prompt) / peer_prefill:.1f}"
    yield BenchRow(
        f"{what}: prefill of {len(prompt)}",
        peer.name,
        prefill,
        peer_prefill,
        None,
        None,
        effort.rounds,
        speed,
    )
    speed = f"{1 / step:.1f} tokens/s, theirs {1 / peer_step:.1f}, {size / step / 1e9:.1f} GB/s"
    yield BenchRow(
        f"{what}: a token",
        peer.name,
        step,
        peer_step,
        None,
        None,
        effort.rounds,
        f"{speed}, {agree}",
    )
