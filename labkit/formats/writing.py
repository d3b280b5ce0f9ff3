"""Write files that appear only when they are whole.

Everything is written beside its place under another name, flushed to the disk, and then renamed:
whoever looks sees the old state or the new one. What fails on the way leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from labkit.core.errors import FormatError, StorageError

# transformers 4 refuses a file that does not say which framework wrote it.
METADATA = {"format": "pt"}


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file: aside, then renamed. Tensors that share memory are copied.

    Raises:
        StorageError: the disk is full, or the place cannot be written to; no file is left.
    """
    own = _separate(tensors)
    with _aside(path) as partial:
        try:
            save_file(own, partial, dict(metadata or {}) | METADATA)
        except SafetensorError as error:
            raise _storage_error(path, str(error)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write one file: aside, then renamed.

    Raises:
        StorageError: the disk is full, or the place cannot be written to; no file is left.
    """
    with _aside(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object as indented JSON, its keys sorted, as transformers does.

    Raises:
        StorageError: as `write_bytes`.
    """
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


@contextmanager
def folder_aside(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside ``path`` to write into; it becomes ``path`` when the block ends well.

    Args:
        overwrite: replace a folder that is there and not empty.

    Raises:
        FormatError: ``path`` is there, not an empty folder, and ``overwrite`` is False.
        StorageError: the disk is full, or the place cannot be written to; nothing is left.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise FormatError(
            "there is something already",
            where=str(path),
            remedy="Name another folder, or pass overwrite=True.",
        )
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    replaced = path.with_name(f"{aside.name}.replaced")
    try:
        aside.mkdir(parents=True)
        yield aside
        if path.exists():
            path.rename(replaced)
        aside.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise _storage_error(path, str(error)) from error
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise _storage_error(path, str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _storage_error(path: Path, why: str) -> StorageError:
    return StorageError(
        f"could not be written: {why}",
        where=str(path),
        remedy="Nothing half-written was left. Make room, or write somewhere else.",
    )


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CPU tensors, contiguous, no two in the same memory: what safetensors takes."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place in seen or tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own
