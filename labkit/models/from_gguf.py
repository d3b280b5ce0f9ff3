"""A GGUF file back as a folder that transformers reads: names, row orders and settings undone.

Quantized tensors come back as the floats that llama.cpp computes with, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labkit.core.errors import FormatError, LabkitError, ModelError
from labkit.formats.checkpoint import SHARD_BYTES, write_shards
from labkit.formats.gguf.names import Change, Naming, naming_for
from labkit.formats.gguf.permute import inverse, row_order
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.settings_reading import Source, config_of
from labkit.formats.tokenizer_files import save_tokenizer
from labkit.formats.writing import folder_aside, write_json
from labkit.models.skeleton import Skeleton

Progress = Callable[[str, int, int], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tensors that stand for settings: config.json says what they say.
SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def from_gguf(
    path: Path | str,
    out: Path | str,
    dtype: str = "float32",
    *,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the model in `path` as the folder `out`: config.json, safetensors and the tokenizer.

    Tensors are read one after another; what is in memory is one shard of at most `shard_bytes`, or
    one tensor. A file without a vocabulary gives a folder without a tokenizer.

    Args:
        dtype: of the weights in the folder: "float32" keeps every bit.

    Raises:
        FormatError: a damaged or hostile file, or there is something already at `out`.
        ModelError: an architecture that labkit does not read, or tensors that do not fit it.
        StorageError: the disk is full, or the place is closed to us.
    """
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}", remedy=f"Choose from {', '.join(DTYPES)}.")
    with GgufFile(path) as file, folder_aside(Path(out), overwrite=overwrite) as aside:
        naming = naming_for(file.metadata.get("general.architecture"), str(path))
        config = config_from(file, naming) | {"torch_dtype": dtype}
        tensors = _converted(file, naming, config, DTYPES[dtype], progress)
        write_shards(aside, tensors, shard_bytes)
        write_tokenizer(file, aside)
        write_json(aside / "config.json", config)
        _require_fitting(aside, str(path))


def weights_of(path: Path | str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a GGUF file under transformers' names, float32, one after another.

    A tied head comes once, as the embedding. Raises FormatError and ModelError as `from_gguf`.
    """
    with GgufFile(path) as file:
        naming = naming_for(file.metadata.get("general.architecture"), str(path))
        yield from _converted(file, naming, config_from(file, naming), torch.float32, None)


def config_from(file: GgufFile, naming: Naming) -> dict[str, Any]:
    """What config.json says of the model in ``file``. Raises as `from_gguf`."""
    shapes = {name: info.shape for name, info in file.tensors.items()}
    source = Source(file.metadata, shapes, naming.architecture, str(file.path), file.read)
    ids = {
        f"{which}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for which, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return config_of(source, naming) | ids


def _converted(
    file: GgufFile,
    naming: Naming,
    config: dict[str, Any],
    dtype: torch.dtype,
    progress: Progress | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    names = [name for name in file.tensors if name not in SETTINGS]
    for done, name in enumerate(names, start=1):
        theirs = naming.to_hugging_face(name)
        try:
            weights = undone(file.read(name), naming.change(name), config)
        except LabkitError as error:
            error.add_note(f"in tensor {name}")
            raise
        yield theirs, torch.from_numpy(weights).to(dtype)
        if progress is not None:
            progress(name, done, len(names))


def undone(weights: np.ndarray, change: Change, config: dict[str, Any]) -> np.ndarray:
    """The tensor as Hugging Face keeps it: float32, C-contiguous."""
    if change == "transpose":
        return np.ascontiguousarray(weights.T)
    if change == "plus_one":
        return weights - np.float32(1.0)
    heads = config.get("num_attention_heads", 1)
    order = row_order(change, weights.shape[0], heads, config.get("num_key_value_heads", heads))
    return weights if order is None else weights[inverse(order)]


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """The file's vocabulary as a tokenizer's files; nothing if it has none."""
    if file.metadata.get("tokenizer.ggml.model") in ("none", "no_vocab", None):
        return
    from labkit.formats.gguf.tokenizer_reading import tokenizer_from

    save_tokenizer(tokenizer_from(file.metadata), folder)


def _require_fitting(folder: Path, where: str) -> None:
    """Settings and tensors of a file need not belong together."""
    try:
        Skeleton(folder)
    except (ModelError, FormatError) as error:
        raise ModelError(
            f"its settings and its tensors do not make a model ({error.what})",
            where=where,
            remedy="Fetch the file again.",
        ) from error
