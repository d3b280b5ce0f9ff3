"""A quantized model on its way to or from a folder: what every format has in common.

A folder in Hugging Face layout holds config.json, safetensors in shards, and the tokenizer's files.
A format decides two things alone: which tensors stand for a quantized layer, and what
config.json says about them under "quantization_config".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from labkit.core.errors import FormatError
from labkit.core.quantized import Quantized
from labkit.formats.inputs import InputQuantization
from labkit.formats.reading import LazyTensors, open_tensors, read_companions, read_json
from labkit.formats.writing import folder_aside, save_tensors, write_bytes, write_json

Value = TypeVar("Value")
SHARD_BYTES = 2**30
QUANTIZATION = "quantization_config"


@dataclass(frozen=True)
class Checkpoint:
    """A model whose linear layers are quantized.

    Args:
        config: config.json without "quantization_config".
        tensors: everything that is not quantized, by the name it has in the state dict; the biases
            of quantized layers too.
        layers: the quantized weights [out, in], by the name of their module
            ("model.layers.0.mlp.up_proj", no ".weight").
        files: tokenizer files and generation settings, by name.
        inputs: how the inputs of layers are quantized, by module name; empty for weights alone.
    """

    config: dict[str, object]
    tensors: Mapping[str, torch.Tensor]
    layers: Mapping[str, Quantized]
    files: Mapping[str, bytes] = field(default_factory=dict)
    inputs: Mapping[str, InputQuantization] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """A folder as it was found: nothing in it has been understood yet.

    Args:
        path: where it is, for messages.
        config: config.json without "quantization_config".
        quantization: that part, or the older file that says the same; empty if there is none.
        tensors: every tensor, read when asked for.
        files: tokenizer files and generation settings.
    """

    path: Path
    config: dict[str, object]
    quantization: dict[str, object]
    tensors: LazyTensors
    files: dict[str, bytes]


def read_folder(path: Path | str) -> Folder:
    """Open a folder in Hugging Face layout; tensors are read later, one at a time.

    Raises:
        FormatError: missing, damaged or hostile files; a pickle.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    quantization = quantization_of(path, config)
    config.pop(QUANTIZATION, None)
    return Folder(path, config, quantization, open_tensors(path), read_companions(path))


class Lazy(Mapping[str, Value]):
    """Layers or tensors, each read when it is asked for; a damaged one is refused then."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Value]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Without(Mapping[str, torch.Tensor]):
    """A mapping of tensors with some names left out; nothing is read before it is asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], left_out: Iterable[str]) -> None:
        out = set(left_out)
        self._tensors = tensors
        self._names = dict.fromkeys(name for name in tensors if name not in out)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def quantization_of(path: Path, config: Mapping[str, object]) -> dict[str, object]:
    """What the folder says about its quantization; {} if it says nothing.

    AutoGPTQ and AutoAWQ of 2023 wrote it into a file of its own, not into config.json.

    Raises:
        FormatError: it is no JSON object.
    """
    if QUANTIZATION in config:
        found = config[QUANTIZATION]
        if not isinstance(found, dict):
            raise FormatError(f"{QUANTIZATION} is no object", where=str(path / "config.json"))
        return dict(found)
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (path / name).is_file():
            return {"quant_method": method} | read_json(path / name)
    return {}


def write_folder(
    path: Path | str,
    checkpoint: Checkpoint,
    packed: Iterable[tuple[str, torch.Tensor]],
    quantization: Mapping[str, object],
    *,
    extra: Mapping[str, Mapping[str, object]] | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint as a folder that transformers reads, as a whole or not at all.

    Args:
        packed: the tensors that stand for `checkpoint.layers`, taken one after another, so that
            no more than a shard is in memory.
        quantization: goes into config.json as "quantization_config".
        extra: more JSON files, such as quantize_config.json.
        shard_bytes: a new file begins when the next tensor would exceed this.

    Raises:
        FormatError: the folder is there already; a tensor of one name comes twice.
        StorageError: the disk is full, or the place cannot be written to; nothing is left.
    """
    with folder_aside(Path(path), overwrite=overwrite) as aside:
        for name, content in checkpoint.files.items():
            write_bytes(aside / Path(name).name, content)
        for name, settings in (extra or {}).items():
            write_json(aside / name, settings)
        write_shards(aside, _all_tensors(checkpoint, packed), shard_bytes)
        config = dict(checkpoint.config) | {QUANTIZATION: dict(quantization)}
        write_json(aside / "config.json", config)


def _all_tensors(
    checkpoint: Checkpoint, packed: Iterable[tuple[str, torch.Tensor]]
) -> Iterable[tuple[str, torch.Tensor]]:
    for name in checkpoint.tensors:
        yield name, checkpoint.tensors[name]
    yield from packed


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors, taken one after another, as model.safetensors or as shards with an index.

    No more than `shard_bytes`, or one tensor, is in memory. The folder is one that is still aside.

    Raises:
        FormatError: a tensor of one name comes twice.
        StorageError: the disk is full.
    """
    places: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}
    shards, held, total = 0, 0, 0
    for name, tensor in tensors:
        if name in places:
            raise FormatError(f"two tensors named {name!r}", where=str(folder))
        if shard and held + tensor.nbytes > shard_bytes:
            save_tensors(folder / _shard_name(shards, 0), shard)
            shard, shards, held = {}, shards + 1, 0
        shard[name] = tensor
        places[name] = shards
        held += tensor.nbytes
        total += tensor.nbytes
    if not shards:
        save_tensors(folder / "model.safetensors", shard)
        return
    save_tensors(folder / _shard_name(shards, 0), shard)
    # How many there are is known only now; the folder itself is still aside.
    for number in range(shards + 1):
        (folder / _shard_name(number, 0)).rename(folder / _shard_name(number, shards + 1))
    index = {name: _shard_name(number, shards + 1) for name, number in places.items()}
    content = {"metadata": {"total_size": total}, "weight_map": index}
    write_json(folder / "model.safetensors.index.json", content)


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"
