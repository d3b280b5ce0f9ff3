"""A GGUF file as a checkpoint: its matrices stay blocks, its rows get Hugging Face's order."""

from __future__ import annotations

from typing import Any

import torch

from labkit.core.errors import FormatError, LabkitError
from labkit.formats.checkpoint import Checkpoint, Lazy
from labkit.formats.gguf.names import Naming, naming_for
from labkit.formats.gguf.permute import inverse, row_order
from labkit.formats.gguf.reader import GgufFile
from labkit.models.from_gguf import SETTINGS, config_from, undone
from labkit.nn.packed import Form, form_of
from labkit.quantize.gguf_types import BLOCK_TYPES

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def gguf_checkpoint(file: GgufFile) -> Checkpoint:
    """The model in an open file. Its `layers` are packed forms, embeddings and head among them.

    Reordering the rows of a matrix moves whole rows of blocks, so no block is ever decoded.

    Raises:
        ModelError: an architecture that labkit does not read, or tensors that do not fit it.
        FormatError: a type that labkit does not decode; when it is read, a file that changed.
    """
    naming = naming_for(file.metadata.get("general.architecture"), str(file.path))
    config = config_from(file, naming)
    places = {naming.to_hugging_face(name): name for name in file.tensors if name not in SETTINGS}
    for name in places.values():
        if file.tensors[name].type_name not in BLOCK_TYPES:
            raise FormatError(
                f"tensor {name!r} is in {file.tensors[name].type_name}",
                where=str(file.path),
                remedy=f"labkit decodes {', '.join(BLOCK_TYPES)}.",
            )
    matrices = {
        theirs.removesuffix(".weight"): name
        for theirs, name in places.items()
        if len(file.tensors[name].shape) == 2 and theirs.endswith(".weight")
    }
    rest = {
        theirs: name
        for theirs, name in places.items()
        if theirs.removesuffix(".weight") not in matrices
    }

    def vector(theirs: str) -> torch.Tensor:
        name = rest[theirs]
        return torch.from_numpy(undone(file.read(name), naming.change(name), config))

    return Checkpoint(
        config,
        Lazy(rest, vector),
        Lazy(matrices, lambda theirs: _form(file, naming, config, matrices[theirs])),
    )


def _form(file: GgufFile, naming: Naming, config: dict[str, Any], name: str) -> Form:
    try:
        blocks = _read(file, name)
        change, heads = naming.change(name), config.get("num_attention_heads", 1)
        kv_heads = config.get("num_key_value_heads", heads)
        order = row_order(change, len(blocks), heads, kv_heads)
    except LabkitError as error:
        error.add_note(f"in tensor {name}")
        raise
    if order is not None:
        blocks = blocks[torch.from_numpy(inverse(order))]
    kind = file.tensors[name].type_name
    return form_of(blocks.view(_FLOATS[kind]) if kind in _FLOATS else (blocks, kind))


def _read(file: GgufFile, name: str) -> torch.Tensor:
    """The blocks of a matrix, uint8 [rows, bytes of a row], in memory of their own.

    Read, not mapped: pages of a map would count as the process's memory beside the copy.
    """
    info = file.tensors[name]
    blocks = torch.empty(info.shape[0], info.nbytes // info.shape[0], dtype=torch.uint8)
    with file.path.open("rb") as source:
        source.seek(info.offset)
        count = source.readinto(memoryview(blocks.numpy()).cast("B"))
    if count != info.nbytes:
        raise FormatError(
            f"tensor {name!r} ends early: the file changed since it was opened",
            where=str(file.path),
            remedy="Load it again.",
        )
    return blocks
