"""llama.cpp's importance matrix ("imatrix"): a GGUF file that says which columns matter.

For every weight it holds the sum of the squares of each input column, and how many tokens were
summed. The quantizers weigh errors by the mean. The file is an ordinary GGUF without a model:

    blk.0.attn_q.weight.in_sum2    float32 [columns]    sum of x² over all tokens
    blk.0.attn_q.weight.counts     float32 [1]          the tokens
    imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size

Source: llama.cpp, tools/imatrix/imatrix.cpp (save_imatrix), common/imatrix-loader.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.core.errors import CalibrationError, FormatError
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import Kind, Value, array, string, u32
from labkit.formats.gguf.writer import Declared, GgufWriter

_SUMS, _COUNTS = ".in_sum2", ".counts"
_OLD = (
    "The older .dat files are not read: write one as GGUF with llama-imatrix --output-format gguf."
)


@dataclass(frozen=True)
class ImportanceMatrix:
    """What calibration saw.

    Args:
        sums: GGUF's name of a weight -> float32 [columns], the sum of x² over all tokens.
        counts: GGUF's name -> tokens that were summed.
        datasets: what they were read from.
        chunk_count, chunk_size: sequences, and tokens of each.
    """

    sums: Mapping[str, np.ndarray]
    counts: Mapping[str, int]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0

    def mean(self, name: str, columns: int) -> np.ndarray | None:
        """Mean of x² for each column, float32 [columns]; None for a weight that was not seen.

        Divided in float32, as llama.cpp does: its quantizers see the same bits. A weight that saw
        no token counts all its columns alike.

        Raises CalibrationError when the file is another model's.
        """
        if name not in self.sums:
            return None
        sums, count = self.sums[name], self.counts[name]
        if len(sums) != columns:
            raise CalibrationError(
                f"importance of {len(sums)} columns for a weight of {columns}",
                where=name,
                remedy="The importance matrix is another model's; compute one for this model.",
            )
        if count == 0:
            return np.ones(columns, np.float32)
        return sums / np.float32(count)


def write(path: Path | str, matrix: ImportanceMatrix, *, force: bool = False) -> None:
    """Write the file, as llama-imatrix would.

    Raises:
        CalibrationError: nothing was seen.
        FormatError: there is something already, and not `force`.
        StorageError: the disk is full, or the place is closed to us.
    """
    if not matrix.sums:
        raise CalibrationError("an importance matrix without a weight", where=str(path))
    metadata: dict[str, Value] = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(Kind.STRING, matrix.datasets),
        "imatrix.chunk_count": u32(matrix.chunk_count),
        "imatrix.chunk_size": u32(matrix.chunk_size),
    }
    declared, contents = [], []
    for name in sorted(matrix.sums):
        sums = np.ascontiguousarray(matrix.sums[name], np.float32)
        declared += [
            Declared(name + _SUMS, sums.shape, "F32"),
            Declared(name + _COUNTS, (1,), "F32"),
        ]
        contents += [sums, np.array([matrix.counts[name]], np.float32)]
    with GgufWriter(path, metadata, declared, force=force) as writer:
        for entry, content in zip(declared, contents, strict=True):
            writer.write(entry.name, content[None])


def read(path: Path | str) -> ImportanceMatrix:
    """Read the file.

    Raises:
        FormatError: no GGUF, no importance matrix, or one that contradicts itself.
        NonFiniteError, CalibrationError: from the quantizer, for values that make no sense.
    """
    with GgufFile(path) as file:
        names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
        counted = {name.removesuffix(_COUNTS) for name in file.tensors if name.endswith(_COUNTS)}
        if not names or set(names) != counted:
            raise FormatError(
                f"{len(names)} sums and {len(counted)} counts: no importance matrix",
                where=str(path),
                remedy=_OLD,
            )
        sums, counts = {}, {}
        for name in names:
            sums[name], counts[name] = _entry(file, name, str(path))
        said = file.metadata
        return ImportanceMatrix(
            sums,
            counts,
            tuple(map(str, _list(said.get("imatrix.datasets")))),
            _number(said.get("imatrix.chunk_count")),
            _number(said.get("imatrix.chunk_size")),
        )


def _entry(file: GgufFile, name: str, where: str) -> tuple[np.ndarray, int]:
    """A weight's sums and count, as its own copy."""
    for suffix in (_SUMS, _COUNTS):
        if file.tensors[name + suffix].type_name != "F32":
            raise FormatError(f"{name}{suffix} is not float32", where=where)
    sums = np.array(file.read(name + _SUMS), np.float32).reshape(-1)
    counts = np.array(file.read(name + _COUNTS), np.float32).reshape(-1)
    if len(counts) != 1:
        raise FormatError(
            f"{name} has {len(counts)} counts: it belongs to a model of experts", where=where
        )
    if not np.isfinite(counts[0]) or counts[0] < 0:
        raise FormatError(f"{name} has a count of {counts[0]}", where=where)
    return sums, round(float(counts[0]))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
