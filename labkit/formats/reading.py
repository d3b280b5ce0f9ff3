"""Read a folder in Hugging Face layout: tensors one at a time, JSON, and the tokenizer's files.

Safetensors alone. A pickle (`pytorch_model.bin`, `.pt`, `.ckpt`) runs whatever code its author put
into it while it is being loaded, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from labkit.core.errors import FormatError
from labkit.formats.header import Entry, read_header

INDEX = ".safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
MAX_JSON = 64 * 2**20
MAX_COMPANION = 256 * 2**20

# What belongs to a model beside its weights and config.json.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of one or more safetensors files; each is read when it is asked for.

    Args:
        files: headers, as `read_header` returns them, by path.

    Raises:
        FormatError: two files hold a tensor of one name.
    """

    def __init__(self, files: Mapping[Path, Mapping[str, Entry]]) -> None:
        self._places: dict[str, tuple[Path, Entry]] = {}
        for path, entries in files.items():
            for name, entry in entries.items():
                if name in self._places:
                    raise FormatError(
                        f"tensor {name!r} is also in {self._places[name][0].name}",
                        where=str(path),
                        remedy="Remove the files that do not belong to the model, or the index is"
                        " missing.",
                    )
                self._places[name] = (path, entry)

    def entry(self, name: str) -> Entry:
        """Type, shape and place of a tensor, without reading it."""
        return self._places[name][1]

    def __getitem__(self, name: str) -> torch.Tensor:
        path, entry = self._places[name]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        buffer = bytearray(entry.end - entry.begin)
        try:
            with path.open("rb") as file:
                file.seek(entry.begin)
                count = file.readinto(buffer)
        except OSError as error:
            raise FormatError(str(error), where=str(path)) from error
        if count != len(buffer):
            raise FormatError(
                f"tensor {name!r} ends early: the file changed since it was opened",
                where=str(path),
                remedy="Load the folder again.",
            )
        return torch.frombuffer(buffer, dtype=entry.dtype).reshape(entry.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def open_tensors(path: Path | str) -> LazyTensors:
    """The tensors of one safetensors file, or of a folder: of its index, else of all its files.

    Raises:
        FormatError: no safetensors, a pickle, an index that names other files or tensors than
            there are, or a damaged header.
    """
    path = Path(path)
    if path.is_file():
        return LazyTensors({path: read_header(path)})
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise _no_safetensors(path)
    indexes = sorted(path.glob(f"*{INDEX}"))
    if not indexes:
        return LazyTensors({file: read_header(file) for file in files})
    if len(indexes) > 1:
        raise FormatError(f"{len(indexes)} indexes", where=str(path), remedy="Keep one.")
    return _indexed(path, indexes[0])


def _indexed(folder: Path, index: Path) -> LazyTensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("no weight_map", where=str(index))
    headers: dict[Path, dict[str, Entry]] = {}
    for name in weight_map.values():
        # A bare name: an index must not point outside of its folder.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or "\0" in name:
            raise FormatError(f"{str(name)[:200]!r} is no file name", where=str(index))
        if (file := folder / name) not in headers:
            headers[file] = read_header(file)
    held = {(name, file.name) for file, entries in headers.items() for name in entries}
    wrong = sorted(str(name) for name, _ in held ^ set(weight_map.items()))
    if wrong:
        raise FormatError(
            f"the index and the files disagree about {len(wrong)} tensors, such as {wrong[0]!r}",
            where=str(index),
            remedy="Fetch the folder again: files of two versions were mixed.",
        )
    return LazyTensors(headers)


def _no_safetensors(folder: Path) -> FormatError:
    pickles = []
    if folder.is_dir():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    found = f"; {', '.join(pickles[:3])} are pickles, which labkit never loads" if pickles else ""
    return FormatError(
        f"no *.safetensors{found}",
        where=str(folder),
        remedy="Convert the checkpoint with save_pretrained(..., safe_serialization=True) on a"
        " machine that trusts it."
        if pickles
        else "Give a model folder in Hugging Face layout.",
    )


def read_json(path: Path) -> dict[str, object]:
    """The object that a JSON file holds.

    Raises:
        FormatError: the file is missing, larger than 64 MiB, no JSON, or no object.
    """
    text = read_bytes(path, MAX_JSON)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"no JSON ({error})", where=str(path)) from error
    if not isinstance(found, dict):
        raise FormatError(f"a {type(found).__name__} instead of an object", where=str(path))
    return found


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most ``limit`` bytes.

    Raises:
        FormatError: the file is missing, unreadable or larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FormatError(str(error), where=str(path), remedy="Check the path.") from error
    if len(content) > limit:
        raise FormatError(f"more than {limit} bytes", where=str(path))
    return content


def read_companions(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files and the generation settings that the folder has, by name."""
    return {
        name: read_bytes(folder / name, MAX_COMPANION)
        for name in COMPANIONS
        if (folder / name).is_file()
    }
