"""A model as a GGUF file that llama.cpp runs, written tensor by tensor.

What is in memory at a time is one tensor of the model and the blocks of a few of its rows. The file
appears under its name when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from labkit.core.errors import CalibrationError, LabkitError, ModelError
from labkit.formats.gguf import imatrix
from labkit.formats.gguf.imatrix import ImportanceMatrix
from labkit.formats.gguf.mix import FILE_TYPES, Choice, choose_types, file_type
from labkit.formats.gguf.names import Change, Naming, naming_of
from labkit.formats.gguf.permute import row_order
from labkit.formats.gguf.rope import rope_tensors
from labkit.formats.gguf.settings import Settings, rotated, setting_values, settings_of
from labkit.formats.gguf.values import Value, string, u32
from labkit.formats.gguf.writer import Declared, GgufWriter
from labkit.models.gguf_report import Conversion, Converted
from labkit.models.gguf_weights import FolderWeights, ModelWeights, Weights, require_float
from labkit.quantize import gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str, int, int], None]
_CHUNK = 2**22  # weights that are encoded at a time
_QUANTIZATION_VERSION = 2  # of ggml's blocks; it has not changed since May 2023


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file, and where it comes from ("" for one that is computed)."""

    name: str
    source: str
    shape: tuple[int, ...]
    change: Change
    choice: Choice


def to_gguf(
    source: Path | str | tuple[nn.Module, PreTrainedTokenizerBase | None],
    out: Path | str,
    type_name: str = "Q4_K_M",
    importance: ImportanceMatrix | Path | str | None = None,
    *,
    pure: bool = False,
    force: bool = False,
    vocabulary: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model as `out`; what was chosen for each tensor, and why, is returned.

    Args:
        source: a folder in Hugging Face layout (its shards are read tensor by tensor), or a model
            in memory and its tokenizer; without one the file has no vocabulary, and llama.cpp
            takes token ids alone.
        type_name: a mix of labkit.formats.gguf.mix.FILE_TYPES, such as "Q4_K_M" or "F16".
        importance: an importance matrix, or the file of one.
        pure: the mix's own type for every matrix.
        force: replace a file that is there.
        vocabulary: False leaves the vocabulary out, and a folder needs no tokenizer's files.
        progress: called after each tensor with its name, the tensors done and their number.

    Raises:
        SchemeError: an unknown type.
        ModelError: an architecture that llama.cpp or labkit does not know, settings with which
            llama.cpp would compute something else, or a folder that contradicts itself.
        CalibrationError: an importance matrix of another model, or with columns that count nothing.
        NonFiniteError: weights with NaN or infinity; the tensor is named in a note.
        FormatError: there is something already, or the source is damaged.
        StorageError: the disk is full, or the place is closed to us.
    """
    mix = file_type(type_name)
    weights, tokenizer, title = _open(source, vocabulary)
    if isinstance(importance, (str, Path)):
        importance = imatrix.read(importance)
    naming = naming_of(weights.config.get("model_type"), weights.where)
    settings = settings_of(weights.config)
    values, notes = setting_values(weights.config, settings, naming)
    computed = _computed(weights, settings)
    plan = _plan(weights, naming, settings, computed, mix, importance, pure)
    metadata = _general(naming, title, mix, importance) | values | _vocabulary(tokenizer, settings)
    notes += _importance_notes(plan, importance)
    declared = [Declared(item.name, item.shape, item.choice.type_name) for item in plan]
    with GgufWriter(out, metadata, declared, force=force) as writer:
        for done, item in enumerate(plan, start=1):
            try:
                _write(writer, item, weights, settings, computed, importance)
            except LabkitError as error:
                error.add_note(f"in tensor {item.name}")
                raise
            if progress is not None:
                progress(item.name, done, len(plan))
        nbytes = writer.nbytes
        tensors = tuple(
            Converted(i.name, i.source, i.shape, i.choice.type_name, i.choice.reason) for i in plan
        )
    return Conversion(Path(out), mix, naming.architecture, nbytes, tensors, tuple(notes))


def _open(
    source: Path | str | tuple[nn.Module, PreTrainedTokenizerBase | None], vocabulary: bool
) -> tuple[Weights, PreTrainedTokenizerBase | None, str]:
    """Weights, tokenizer, and what the model is called."""
    if isinstance(source, tuple):
        model, tokenizer = source
        name = Path(getattr(model.config, "_name_or_path", "") or "").name
        used = tokenizer if vocabulary else None
        return ModelWeights(model), used, name or type(model).__name__
    folder = Path(source)
    weights = FolderWeights(folder)
    tokenizer = folder_tokenizer(folder) if vocabulary else None
    return weights, tokenizer, folder.resolve().name


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ModelError where there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer that can be read ({error})",
            where=str(folder),
            remedy="Put the tokenizer's files beside the weights.",
        ) from error


def _computed(weights: Weights, settings: Settings) -> dict[str, np.ndarray]:
    """Tensors that no checkpoint has and llama.cpp wants."""
    if settings.rope is None:
        return {}
    return rope_tensors(settings.rope, rotated(weights.config, settings))


def _plan(
    weights: Weights,
    naming: Naming,
    settings: Settings,
    computed: dict[str, np.ndarray],
    mix: str,
    importance: ImportanceMatrix | None,
    pure: bool,
) -> list[_Planned]:
    """Every tensor of the file, in its order: embedding, blocks, norm, head."""
    sources: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for source, shape in weights.shapes().items():
        name = naming.to_gguf(source)
        turned = naming.change(name) == "transpose"
        sources[name], shapes[name] = source, shape[::-1] if turned else shape
    if naming.architecture == "gptneox" and "output.weight" not in shapes:
        # llama.cpp's GPT-NeoX takes no tied embedding: the matrix goes into the file twice.
        sources["output.weight"] = sources["token_embd.weight"]
        shapes["output.weight"] = shapes["token_embd.weight"]
    shapes |= {name: value.shape for name, value in computed.items()}
    facts = settings.facts(naming.architecture)
    choices = choose_types(shapes, mix, facts, importance=importance is not None, pure=pure)
    return [
        _Planned(name, sources.get(name, ""), shape, naming.change(name), choices[name])
        for name, shape in shapes.items()
    ]


def _general(
    naming: Naming, title: str, mix: str, importance: ImportanceMatrix | None
) -> dict[str, Value]:
    found = {
        "general.architecture": string(naming.architecture),
        "general.type": string("model"),
        "general.name": string(title),
        "general.file_type": u32(FILE_TYPES[mix].number),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
    }
    if importance is not None:
        found["quantize.imatrix.dataset"] = string(", ".join(importance.datasets))
        found["quantize.imatrix.entries_count"] = u32(len(importance.sums))
        found["quantize.imatrix.chunks_count"] = u32(importance.chunk_count)
    return found


def _vocabulary(tokenizer: PreTrainedTokenizerBase | None, settings: Settings) -> dict[str, Value]:
    if tokenizer is None:
        return {"tokenizer.ggml.model": string("none")}
    from labkit.formats.gguf.tokenizer_writing import tokenizer_metadata

    return tokenizer_metadata(tokenizer, settings.vocabulary)


def _importance_notes(plan: list[_Planned], importance: ImportanceMatrix | None) -> list[str]:
    """Matrices of blocks that calibration did not see; embedding and head are never in it."""
    if importance is None:
        return []
    inner = [i for i in plan if i.name.startswith("blk.") and i.choice.type_name != "F32"]
    unseen = [item.name for item in inner if item.name not in importance.sums]
    if inner and len(unseen) == len(inner):
        raise CalibrationError(
            "it knows none of the model's tensors",
            where="importance matrix",
            remedy="It is another model's; compute one with `labkit gguf imatrix`.",
        )
    return [f"no importance for {name}" for name in unseen]


def _write(
    writer: GgufWriter,
    item: _Planned,
    weights: Weights,
    settings: Settings,
    computed: dict[str, np.ndarray],
    importance: ImportanceMatrix | None,
) -> None:
    """Read a tensor, change it as llama.cpp wants it, and write it a few rows at a time."""
    if not item.source:
        tensor = torch.from_numpy(computed[item.name])
    else:
        tensor = weights.read(item.source)
        require_float(weights, item.source, tensor)
    if item.change == "transpose":
        tensor = tensor.T
    order = row_order(item.change, tensor.shape[0], settings.heads, settings.kv_heads)
    if tensor.ndim == 1:
        tensor = (tensor if order is None else tensor[order])[None]
        order = None
    columns = tensor.shape[1]
    matter = None if importance is None else importance.mean(item.name, columns)
    for start in range(0, tensor.shape[0], step := max(1, _CHUNK // columns)):
        rows = slice(start, start + step)
        piece = tensor[rows if order is None else order[rows]].float()
        if item.change == "plus_one":
            piece = piece + 1.0
        writer.write(item.name, gguf.quantize(piece, item.choice.type_name, matter))
