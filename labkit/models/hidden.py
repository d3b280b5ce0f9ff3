"""Hidden states of all calibration batches: in files, or in memory while they are few.

128 sequences of 2048 tokens, for a model of width 4096, are 4.3 GB in float32: more than the block
that is being quantized and all that its method needs. So only one batch of them need be in memory.

    inputs-00001/00000.safetensors      what enters block 1, batch 0

The folder appears when it is whole. Batches are kept in the dtype in which they were computed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from labkit.core.errors import FormatError, StorageError
from labkit.formats.reading import open_tensors
from labkit.formats.writing import folder_aside, save_tensors

#: Bytes of one block's inputs that stay in memory where nothing asks for files.
IN_MEMORY = 2**28


@dataclass(frozen=True)
class StoredBatch:
    """A batch of hidden states in a file of its own.

    Args:
        file: safetensors; its one tensor is "hidden" [batch, length, hidden].
        device: where the batch was computed, and is wanted.
    """

    file: Path
    device: torch.device

    def read(self) -> Tensor:
        """The batch. Raises FormatError for a damaged file."""
        tensors = open_tensors(self.file)
        if set(tensors) != {"hidden"}:
            raise _no_inputs(self.file)
        return tensors["hidden"].to(self.device)


Batch = Tensor | StoredBatch


class HiddenStates:
    """What enters the blocks of one run, block by block.

    Args:
        folder: where each block's inputs go; None for memory, and a temporary folder for what is
            more than `in_memory` bytes. That folder is gone after `close`.
    """

    def __init__(self, folder: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self._folder = folder
        self._in_memory = 0 if folder is not None else in_memory
        self._temporary: Path | None = None

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was temporary."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def keep(self, index: int, batches: Iterator[Tensor]) -> list[Batch]:
        """Take what enters block `index`, batch after batch; hand it back to be read again.

        Raises:
            StorageError: the disk is full; nothing half-written is left.
        """
        held: list[Tensor] = []
        size = 0
        for batch in batches:
            held.append(batch)
            size += batch.nbytes
            del batch
            if size > self._in_memory:
                return self._write(index, chain(_letting_go(held), batches))
        return list(held)

    def read(self, index: int, count: int, device: torch.device) -> list[Batch]:
        """What an earlier run kept for block `index`: `count` batches.

        Raises FormatError when it is not there, or not whole.
        """
        place = self._place(index)
        found = sorted(path.name for path in place.glob("*")) if place.is_dir() else []
        if found != [_name(number) for number in range(count)]:
            raise _no_inputs(place)
        return [StoredBatch(place / name, device) for name in found]

    def drop(self, index: int) -> None:
        """Remove what entered block `index`: it is finished."""
        if self._folder is not None or self._temporary is not None:
            shutil.rmtree(self._place(index), ignore_errors=True)

    def _write(self, index: int, batches: Iterator[Tensor]) -> list[Batch]:
        place = self._place(index)
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed before its block
        names: list[tuple[str, torch.device]] = []
        with folder_aside(place) as aside:
            for batch in batches:
                names.append((_name(len(names)), batch.device))
                save_tensors(aside / names[-1][0], {"hidden": batch})
                del batch  # before the next one is computed
        return [StoredBatch(place / name, device) for name, device in names]

    def _place(self, index: int) -> Path:
        if self._folder is None and self._temporary is None:
            try:
                self._temporary = Path(tempfile.mkdtemp(prefix="labkit-hidden-"))
            except OSError as error:
                raise StorageError(
                    f"no temporary folder for hidden states ({error})",
                    remedy="Make room, set TMPDIR to a folder on another disk, or name a work"
                    " folder.",
                ) from error
        return (self._folder or self._temporary or Path()) / f"inputs-{index:05}"


def drop_all(batches: Iterator[Tensor]) -> list[Batch]:
    """Let `batches` pass and keep none: for what is wanted beside them."""
    for _ in batches:
        pass
    return []


def _name(number: int) -> str:
    return f"{number:05}.safetensors"


def _letting_go(held: list[Tensor]) -> Iterator[Tensor]:
    while held:
        yield held.pop(0)


def _no_inputs(place: Path) -> FormatError:
    return FormatError(
        "these are not the inputs of a block",
        where=str(place),
        remedy="Remove the work folder and start the run again.",
    )
