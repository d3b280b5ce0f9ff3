"""Resident memory of a model loaded from each format, beside the bytes of its file.

Each is written with random weights, loaded by `labkit.models.packed.load_packed` in a process of
its own (`labkit.bench.memory_probe`), and deleted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from labkit.bench import memory_models
from labkit.bench.random_gguf import LlamaShape
from labkit.bench.rows import Effort
from labkit.core.errors import ModelError
from labkit.evaluate import resident

RATIO_MEANS = "bytes of the file for each byte in memory"

SHAPE = LlamaShape(1536, 16, 4096, 24, 8, 16_000, 512)
QUICK = LlamaShape(1024, 5, 2816, 16, 8, 8192, 512)
TINY = LlamaShape(256, 1, 512, 4, 2, 512, 512)
_QUICK = ("GPTQ int4 group 128", "bitsandbytes NF4, nested", "GGUF Q4_K")


@dataclass(frozen=True)
class MemoryRow:
    """One model.

    Attributes:
        what: the format.
        peer: "its file".
        parameters: weights of the matrices.
        file_bytes: of the weights on the disk.
        resident_bytes: what the process holds more, once the model is loaded.
        peak_bytes: the most that it held more meanwhile; None where the system does not say.
        running_bytes: what it holds more once it has generated a few tokens.
    """

    what: str
    peer: str
    parameters: int
    file_bytes: int
    resident_bytes: int
    peak_bytes: int | None
    running_bytes: int

    @property
    def resident_ratio(self) -> float:
        """Bytes in memory for each byte of the file."""
        return self.resident_bytes / self.file_bytes

    @property
    def ratio(self) -> float:
        """Bytes of the file for each byte in memory: larger is better."""
        return 1 / self.resident_ratio

    def as_dict(self) -> dict[str, object]:
        """The row for a results file."""
        return asdict(self) | {"resident_ratio": self.resident_ratio, "ratio": self.ratio}


def rows(effort: Effort) -> Iterator[MemoryRow | str]:
    """Yield a row for each format, as it is measured; once each, for memory does not vary.

    Raises ModelError if a process fails.
    """
    if not resident.available():
        yield "Memory is read from /proc, which this system has not."
        return
    shape = QUICK if effort.quick else SHAPE
    for name in _QUICK if effort.quick else memory_models.WRITERS:
        yield measure(name, shape, effort.threads)


def measure(name: str, shape: LlamaShape, threads: int = 1) -> MemoryRow:
    """Write a model of ``shape`` in the format ``name``, load it in a process, delete it."""
    with tempfile.TemporaryDirectory(prefix="labkit-memory-") as work:
        places = []
        for size, folder in ((TINY, "tiny"), (shape, "whole")):
            (Path(work) / folder).mkdir()
            places.append(memory_models.place(Path(work) / folder, name))
            memory_models.WRITERS[name](places[-1], size)
        found = _probed(places, threads)
        nbytes = memory_models.file_bytes(places[-1])
        return MemoryRow(name, "its file", shape.parameters, nbytes, **found)


def _probed(places: Sequence[Path], threads: int) -> dict[str, int | None]:
    command = [sys.executable, "-m", "labkit.bench.memory_probe", *map(str, places)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ModelError(
            f"the process ended with {done.returncode}: {done.stderr[-2000:]}",
            where=" ".join(command),
        )
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: Sequence[MemoryRow], threads: int) -> Table:
    """Megabytes, and how many of them are resident for each one of the file."""
    found = Table(title="Memory of a loaded model beside its file, MB")
    found.add_column("format")
    headings = ("weights", "file", "loaded", "peak", "after tokens", "loaded / file")
    for heading in headings:
        found.add_column(heading, justify="right")
    for row in rows:
        sizes = (row.file_bytes, row.resident_bytes, row.peak_bytes, row.running_bytes)
        cells = ["" if size is None else f"{size / 1e6:.0f}" for size in sizes]
        found.add_row(
            row.what, f"{row.parameters / 1e6:.0f} M", *cells, f"{row.resident_ratio:.2f}"
        )
    return found
