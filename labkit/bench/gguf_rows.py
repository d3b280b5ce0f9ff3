"""Every block type of GGUF beside ggml's own C, in one process: encoding and decoding.

Ours is called as a user calls it, its checks included. ggml's function takes rows; they are shared
out over threads of Python, which it runs without the interpreter's lock. Both sides make their
output anew each time. F32 is left out: it is a copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from labkit.bench.rows import named
from labkit.core.errors import SchemeError
from labkit.peers import ggml
from labkit.quantize import gguf
from labkit.quantize.gguf_types import BLOCK_TYPES, block_type, row_bytes

TYPES = tuple(name for name in BLOCK_TYPES if name != "F32")
# These make no use of an importance.
_ROUNDED = ("F16", "BF16", "Q8_0", "MXFP4")
_RUNS = 4
_SHORT = 0.1  # seconds


@dataclass(frozen=True)
class GgufRow:
    """One comparison.

    Attributes:
        type_name: "Q4_K".
        task: "encode", "encode with importance" or "decode".
        size: the weight is float32 [size, size].
        threads: for both sides.
        seconds, peer_seconds: ours and ggml's, medians over the rounds.
        rounds: how many times each was timed, in turns.
        equal: whether both gave the same bytes.
    """

    type_name: str
    task: str
    size: int
    threads: int
    seconds: float
    peer_seconds: float
    rounds: int
    equal: bool

    @property
    def what(self) -> str:
        """Type, task and threads."""
        return f"{self.type_name} {self.task}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def peer(self) -> str:
        """Whose ggml it is."""
        return f"ggml of {named('llama-cpp-python')}"

    @property
    def ratio(self) -> float:
        """How many times as fast as ggml ours is."""
        return self.peer_seconds / self.seconds

    def as_dict(self) -> dict[str, object]:
        """The row for a results file."""
        return asdict(self) | {"ratio": self.ratio, "peer": self.peer}


def rows(names: list[str], size: int, rounds: int, threads: list[int]) -> Iterator[GgufRow]:
    """Yield the rows of the types named, as they are measured.

    Raises:
        SchemeError: a type that is not in `TYPES`.
        PeerMissingError: llama-cpp-python is not there.
    """
    for name in names:
        if name not in TYPES:
            raise SchemeError(f"no type {name!r} to compare", "GGUF", f"There are {TYPES}.")
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((size, size), dtype=np.float32) * np.float32(0.02)
    importance = generator.standard_normal(size, dtype=np.float32) ** 2
    for name in names:
        for count in threads:
            for task, ours, theirs in _tasks(name, weight, importance, count):
                yield _row(name, task, size, count, rounds, ours, theirs)


def _tasks(name: str, weight: np.ndarray, importance: np.ndarray, threads: int):
    """Yield (task, ours, theirs) for a type; both sides return the same array."""

    def encode(known: np.ndarray | None):
        return (
            lambda: gguf.quantize(weight, name, known, threads=threads),
            lambda: _shared_quantize(weight, name, known, threads),
        )

    yield "encode", *encode(None)
    if name not in _ROUNDED:
        yield "encode with importance", *encode(importance)
    blocks = ggml.quantize(weight, name)
    yield (
        "decode",
        lambda: gguf.dequantize(blocks, name, threads=threads),
        lambda: _shared_dequantize(blocks, name, threads),
    )


def _row(
    name: str,
    task: str,
    size: int,
    threads: int,
    rounds: int,
    ours: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
) -> GgufRow:
    equal = ours().tobytes() == theirs().tobytes()
    # What takes milliseconds is disturbed by anything: its median needs more rounds.
    if _seconds(ours) < _SHORT:
        rounds *= 4
    mine, other = [], []
    for _ in range(rounds):
        other.append(_seconds(theirs))
        mine.append(_seconds(ours))
    median = statistics.median
    return GgufRow(name, task, size, threads, median(mine), median(other), rounds, equal)


def _seconds(run: Callable[[], np.ndarray]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _shared_quantize(
    weight: np.ndarray, name: str, importance: np.ndarray | None, threads: int
) -> np.ndarray:
    out = np.empty((len(weight), row_bytes(name, weight.shape[1])), np.uint8)
    _share(lambda part: ggml.quantize(weight[part], name, importance, out[part]), weight, threads)
    return out


def _shared_dequantize(blocks: np.ndarray, name: str, threads: int) -> np.ndarray:
    kind = block_type(name)
    columns = blocks.shape[1] // kind.nbytes * kind.weights
    out = np.empty((len(blocks), columns), np.float32)
    _share(lambda part: ggml.dequantize(blocks[part], name, out[part]), blocks, threads)
    return out


def _share(work: Callable[[slice], object], table: np.ndarray, threads: int) -> None:
    """Call ``work`` for runs of rows, on ``threads`` threads."""
    if threads == 1:
        work(slice(None))
        return
    step = -(-len(table) // (_RUNS * threads))
    parts = [slice(first, first + step) for first in range(0, len(table), step)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))
