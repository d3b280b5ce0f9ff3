"""The folder in which a run leaves what it has finished, so that a killed one goes on from there.

    run.json                    what was asked for; another run must not go on in this folder;
                                locked by the process that works here
    block-00000.safetensors     what block 0 became
    inputs-00001/               what enters block 1, batch by batch (`labkit.models.hidden`)

The inputs of the next block are written before the block itself, and older inputs are removed after
it. So whenever the run ends, blocks 0 to k-1 and the inputs of block k are there, whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.core.errors import ResumeError, StorageError
from labkit.core.file_lock import exclusive
from labkit.formats.reading import read_json
from labkit.formats.writing import write_json
from labkit.models.hidden import HiddenStates
from labkit.models.storage import FinishedBlock, read_block, write_block


class WorkFolder:
    """A run's folder.

    Args:
        path: the folder; made if it is not there.
        asked: what the run is to do, as JSON takes it: settings, calibration, model.

    Raises:
        ResumeError: a run with other settings was begun in it.
        StorageError: it cannot be written to.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path = path
        #: What enters the blocks; an earlier run's can be read.
        self.states = HiddenStates(path)
        record = path / "run.json"
        if record.is_file():
            _require_same(path, read_json(record), asked)
        else:
            _require_empty(path)
            _make(path)
            write_json(record, asked)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep every other run out, and remove what a killed one left half written.

        Raises:
            ResumeError: another process is at work in this folder.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.path / "run.json", wait=False))
            except BlockingIOError as error:
                raise ResumeError(
                    "another process is at work here",
                    where=str(self.path),
                    remedy="Wait until it has ended, or name another work folder.",
                ) from error
            for leftover in self.path.glob(".*.partial"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
            for index in range(self.finished()):
                self.states.drop(index)
            yield

    def finished(self) -> int:
        """How many blocks are finished."""
        count = 0
        while self._block(count).is_file():
            count += 1
        return count

    def read(self, index: int) -> FinishedBlock:
        """A finished block."""
        return read_block(self._block(index))

    def write(self, index: int, block: FinishedBlock) -> None:
        """Keep a finished block; the inputs of the next one are kept already, if there is one.

        Raises StorageError when the disk is full; what was finished before stays as it was.
        """
        write_block(self._block(index), block)
        self.states.drop(index)

    def _block(self, index: int) -> Path:
        return self.path / f"block-{index:05}.safetensors"


def _require_empty(path: Path) -> None:
    others = [] if not path.exists() else [path] if path.is_file() else list(path.iterdir())
    if any(not (entry.name.startswith(".") and entry.suffix == ".partial") for entry in others):
        raise ResumeError(
            "it holds something else than a run of labkit",
            where=str(path),
            remedy="Name a folder that is empty or does not exist.",
        )


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder cannot be made ({error.strerror})",
            where=str(path),
            remedy="Name a work folder in a place that you may write to.",
        ) from error


def _require_same(path: Path, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    old, new = _flat(begun), _flat(asked)
    changed = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ResumeError(
            f"a run with other settings was begun here: {'; '.join(changed)}",
            where=str(path),
            remedy="Give the settings of that run, or name another work folder.",
        )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {name: settings}
    pieces = [_flat(value, f"{name}.{key}" if name else key) for key, value in settings.items()]
    return {key: value for piece in pieces for key, value in piece.items()}
