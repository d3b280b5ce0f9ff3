"""Read a GGUF file: its metadata at once, its tensors where they lie, through a memory map."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from labkit.core.errors import FormatError
from labkit.formats.gguf.layout import TensorInfo
from labkit.formats.gguf.parsing import parse_header
from labkit.formats.gguf.values import Value
from labkit.quantize import gguf
from labkit.quantize.gguf_types import BLOCK_TYPES


class GgufFile:
    """A GGUF file that is open: of its tensors, only what is looked at is read from the disk.

    The views that `raw` hands out stay valid after the file is closed.

    Args:
        path: the file.

    Raises:
        FormatError: no such file, or its header does not describe its bytes.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FormatError("no such file", where=str(path), remedy="Check the path.")
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise FormatError(str(error), where=str(path), remedy="Check the path.") from error
        try:
            self._bytes = self._map()
            header = parse_header(memoryview(self._bytes), str(self.path))
        except BaseException:
            self._file.close()
            raise
        self.version = header.version
        self.alignment = header.alignment
        self.fields: dict[str, Value] = header.fields
        self.tensors: dict[str, TensorInfo] = header.tensors

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata as plain Python values, by key."""
        return {key: field.value for key, field in self.fields.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self._bytes)

    def raw(self, name: str) -> np.ndarray:
        """A tensor's bytes where they lie: read-only uint8 [rows, bytes of a row].

        Rows are counted over all dimensions but the innermost. A slice of the rows reads that
        slice alone.

        Raises:
            FormatError: no tensor of this name, or the file became shorter since it was opened.
        """
        info = self._info(name)
        if self._file.closed:
            raise FormatError("the file is closed", where=str(self.path), remedy="Open it again.")
        # A page that the file no longer has would end the process.
        if os.fstat(self._file.fileno()).st_size < info.offset + info.nbytes:
            raise FormatError(
                f"tensor {name!r} ends early: the file changed since it was opened",
                where=str(self.path),
                remedy="Open it again.",
            )
        rows = math.prod(info.shape[:-1])
        return self._bytes[info.offset : info.offset + info.nbytes].reshape(rows, -1)

    def read(self, name: str) -> np.ndarray:
        """A tensor's weights, decoded: float32 of its shape.

        Raises:
            FormatError: as `raw`, or a type that labkit does not decode.
        """
        info = self._info(name)
        if info.type_name not in BLOCK_TYPES:
            raise FormatError(
                f"tensor {name!r} is in {info.type_name}",
                where=str(self.path),
                remedy=f"labkit decodes {', '.join(BLOCK_TYPES)}.",
            )
        return gguf.dequantize(self.raw(name), info.type_name).reshape(info.shape)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise FormatError(
                f"no tensor {name!r} among {len(self.tensors)}",
                where=str(self.path),
                remedy="`labkit gguf inspect` lists them.",
            )
        return self.tensors[name]

    def _map(self) -> np.ndarray:
        try:
            if not os.fstat(self._file.fileno()).st_size:
                raise FormatError("an empty file", where=str(self.path), remedy="Fetch it again.")
            return np.asarray(np.memmap(self._file, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(str(error), where=str(self.path)) from error
