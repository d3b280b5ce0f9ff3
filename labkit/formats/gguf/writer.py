"""Write a GGUF file tensor by tensor: what is in memory is one piece of one tensor.

The sizes of all tensors follow from their shapes and types, so the header is written first and
their bytes after it, in one pass. The file appears under its name when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from labkit.core.errors import FormatError, ShapeError, StorageError
from labkit.formats.gguf.declaring import Declared, lay_out
from labkit.formats.gguf.layout import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    TensorInfo,
    checked_alignment,
    padded,
)
from labkit.formats.gguf.partial import open_partial, partial_of, storage_error
from labkit.formats.gguf.values import Value
from labkit.quantize import gguf
from labkit.quantize.gguf_types import row_bytes

FLOAT_TYPES = ("F32", "F16", "BF16")

__all__ = ["Declared", "GgufWriter"]


class GgufWriter:
    """A GGUF file that is being written; a context manager.

    with GgufWriter(path, metadata, declared) as writer:
        writer.write("token_embd.weight", blocks)

    Leaving the block checks that every tensor came, and gives the file its name. An error on the
    way, or a kill, leaves nothing under that name.

    Args:
        path: the file to write.
        metadata: by key; general.alignment is obeyed.
        tensors: all tensors, in the order in which they will be written.
        force: replace a file that is there.

    Raises:
        FormatError: the file is there already, a name or a value that GGUF cannot hold, a name
            twice, or a tensor without weights.
        SchemeError, GroupSizeError: a type that labkit does not know, or whose blocks do not fit
            the rows.
        StorageError: too little room, a place that cannot be written to, or another run that
            writes the same file.
    """

    def __init__(
        self,
        path: Path | str,
        metadata: Mapping[str, Value],
        tensors: Sequence[Declared],
        *,
        force: bool = False,
    ) -> None:
        self.path = Path(path).absolute()
        self._force = force
        self._require_free()
        alignment = ALIGNMENT
        if ALIGNMENT_KEY in metadata:
            alignment = checked_alignment(metadata[ALIGNMENT_KEY].value, str(path))
        self._alignment = alignment
        header, self.tensors = lay_out(metadata, tensors, alignment)
        self._order = list(self.tensors.values())
        self._next = 0  # the tensor that is due
        self._written = 0  # bytes of it
        self.nbytes = len(header)
        if self._order:
            self.nbytes = padded(self._order[-1].offset + self._order[-1].nbytes, alignment)
        self._require_room()
        self._file = open_partial(self.path)
        try:
            self._put(header)
        except BaseException:
            self._discard()
            raise

    def write(self, name: str, rows: np.ndarray | torch.Tensor) -> None:
        """Write a tensor, or the next rows of it.

        Args:
            name: the tensor that is due: the declared order is the file's.
            rows: uint8 [n, bytes of a row]; or weights of any float dtype [..., columns], for
                F32, F16 and BF16 alone.

        Raises:
            FormatError: another tensor is due, or more rows than were declared.
            ShapeError: rows of another length, or of another dtype.
            NonFiniteError: weights that are not finite, or beyond F16.
            StorageError: the disk is full.
        """
        if self._next == len(self._order) or name != self._order[self._next].name:
            due = self._order[self._next].name if self._next < len(self._order) else "none"
            raise FormatError(
                f"tensor {name!r} was written, and {due!r} is due",
                where=str(self.path),
                remedy="Write the tensors in the order in which they were declared.",
            )
        info = self._order[self._next]
        content = _row_bytes(info, rows)
        if self._written + content.nbytes > info.nbytes:
            raise FormatError(
                f"tensor {name!r} has {info.nbytes} bytes, and {self._written + content.nbytes}"
                " were written",
                where=str(self.path),
            )
        self._put(content.data)
        self._written += content.nbytes
        if self._written == info.nbytes:
            self._put(bytes(padded(info.nbytes, self._alignment) - info.nbytes))
            self._next += 1
            self._written = 0

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        if self._next < len(self._order):
            raise FormatError(
                f"tensor {self._order[self._next].name!r} is not whole, and"
                f" {len(self._order) - self._next - 1} after it are missing",
                where=str(self.path),
                remedy="Write every tensor that was declared.",
            )
        self._require_free()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            partial_of(self.path).replace(self.path)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _put(self, content: bytes | memoryview) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _discard(self) -> None:
        """Remove what is partial, and only then let go of the lock; does nothing when done."""
        if self._file.closed:
            return
        if self._owns_partial():
            partial_of(self.path).unlink()
        try:
            self._file.close()
        except OSError as error:  # buffered bytes that found no room
            raise storage_error(self.path, error) from error

    def _owns_partial(self) -> bool:
        try:
            found = partial_of(self.path).stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._file.fileno()))

    def _require_free(self) -> None:
        if self.path.is_dir() or (self.path.exists() and not self._force):
            raise FormatError(
                "there is something already",
                where=str(self.path),
                remedy="Name another file, or force it to be replaced.",
            )

    def _require_room(self) -> None:
        """Say at once what would be found after an hour."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise storage_error(self.path, error) from error
        if free < self.nbytes:
            raise StorageError(
                f"{self.nbytes} bytes are needed, and {free} are free",
                where=str(self.path),
                remedy="Make room, or write somewhere else.",
            )


def _row_bytes(info: TensorInfo, rows: np.ndarray | torch.Tensor) -> np.ndarray:
    """The bytes of some rows, uint8 [n, bytes of a row], C-contiguous."""
    width = row_bytes(info.type_name, info.columns)
    is_blocks = rows.dtype in (np.uint8, torch.uint8)
    if not is_blocks and info.type_name not in FLOAT_TYPES:
        raise ShapeError(
            f"{rows.dtype} for a tensor of {info.type_name}",
            where=f"tensor {info.name!r}",
            remedy="Give its blocks as uint8: labkit.quantize.gguf.quantize makes them.",
        )
    expected = width if is_blocks else info.columns
    if not rows.ndim or rows.shape[-1] != expected:
        raise ShapeError(
            f"rows of shape {tuple(rows.shape)}, where the last dimension should be {expected}",
            where=f"tensor {info.name!r}",
        )
    if not is_blocks:
        return gguf.quantize(rows.reshape(-1, info.columns), info.type_name)
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().numpy()
    return np.ascontiguousarray(rows).reshape(-1, width)
