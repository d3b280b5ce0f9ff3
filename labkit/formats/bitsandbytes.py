"""bitsandbytes, as transformers writes it: NF4 and FP4 to read and write, LLM.int8() to read.

A 4-bit layer X [out, in] is

    X.weight                                uint8 [ceil(out * in / 2), 1], first code in high bits
    X.weight.absmax                         float32 [blocks], or uint8 with double quantization
    X.weight.quant_map                      float32 [16]
    X.weight.quant_state.bitsandbytes__nf4  uint8: the bytes of a JSON object with the rest
    X.weight.nested_absmax                  float32 [ceil(blocks / 256)]   } double quantization
    X.weight.nested_quant_map               float32 [256]                  } alone

and an 8-bit one X.weight int8 [out, in], X.SCB float32 [out] (the largest magnitude of each row)
and X.weight_format. Sources: bitsandbytes 0.50, functional.QuantState; transformers 5,
quantizers/quantizer_bnb_4bit.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from labkit.core.codebook import BOOKS, CodebookTensor, NestedAbsmax
from labkit.core.errors import FormatError, LabkitError
from labkit.core.quantized import Quantized
from labkit.formats.bitsandbytes_int8 import read_int8
from labkit.formats.bitsandbytes_state import QuantState, read_state, state_bytes
from labkit.formats.checkpoint import (
    SHARD_BYTES,
    Checkpoint,
    Folder,
    read_folder,
    write_folder,
)
from labkit.quantize.dynamic_map import NESTED_BLOCK_SIZE

STATE = ".weight.quant_state.bitsandbytes__"
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def save(
    checkpoint: Checkpoint,
    path: Path | str,
    *,
    compute_dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write a folder that transformers loads with bitsandbytes; the bytes are kept as they are.

    Args:
        compute_dtype: what layers compute in: "float32", "float16" or "bfloat16"; None for the
            model's own.

    Raises:
        FormatError: no layers, layers that are not `CodebookTensor` or not all of one kind (the
            config names one quant type), a folder that is there already.
        StorageError: the disk is full; nothing is left.
    """
    layers = _codebook_layers(checkpoint.layers)
    first = next(iter(layers.values()))
    own = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32"
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": compute_dtype or own,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": first.quant_type,
        "bnb_4bit_use_double_quant": isinstance(first.absmax, NestedAbsmax),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": _skipped_modules(checkpoint),
        "llm_int8_threshold": 6.0,
    }
    parts = _all_parts(layers)
    write_folder(path, checkpoint, parts, settings, shard_bytes=shard_bytes, overwrite=overwrite)


def load(path: Path | str) -> Checkpoint:
    """Read a folder that transformers or `save` wrote; 4-bit layers come back bit by bit.

    Raises:
        FormatError: damaged or hostile files, parts that are missing or do not fit each other, a
            config that contradicts the tensors.
    """
    folder = read_folder(path)
    config = str(folder.path / "config.json")
    if folder.quantization.get("quant_method") != "bitsandbytes":
        raise FormatError("quant_method is not bitsandbytes", where=config)
    four, eight = _mode(folder, "4bit"), _mode(folder, "8bit")
    if four == eight:
        raise FormatError("one of load_in_4bit and load_in_8bit must be true", where=config)
    layers, used = _four_bit(folder) if four else _eight_bit(folder)
    if not layers:
        raise FormatError(
            "no quantized layer in the tensors, though the config says that there are",
            where=str(folder.path),
            remedy="Weights and config.json belong to different models.",
        )
    tensors = {name: folder.tensors[name] for name in folder.tensors if name not in used}
    return Checkpoint(folder.config, tensors, layers, folder.files)


def layer_parts(name: str, layer: CodebookTensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that stand for layer ``name``, under the names and in the shapes above."""
    weight = f"{name}.weight"
    yield weight, layer.packed[:, None]
    nested = layer.absmax if isinstance(layer.absmax, NestedAbsmax) else None
    yield f"{weight}.absmax", layer.block_absmax() if nested is None else nested.codes
    yield f"{weight}.quant_map", torch.tensor(layer.book.values, dtype=torch.float32)
    if nested is not None:
        yield f"{weight}.nested_absmax", nested.absmax
        yield f"{weight}.nested_quant_map", nested.levels
    yield f"{name}{STATE}{layer.quant_type}", state_bytes(layer)


def layer_from(state: QuantState, parts: Mapping[str, torch.Tensor], where: str) -> CodebookTensor:
    """The layer whose tensors are ``parts`` ("weight", and those of `PARTS` that it has).

    Raises FormatError where they contradict ``state`` or each other; ``where`` names the layer.
    """
    wanted = {"weight", "absmax", "quant_map"}
    if state.nested_offset is not None:
        wanted |= {"nested_absmax", "nested_quant_map"}
    if set(parts) != wanted:
        raise FormatError(f"has {sorted(parts)}", where=where, remedy=f"Needed: {sorted(wanted)}.")
    _require_book(state.quant_type, parts["quant_map"], where)
    for part in wanted - {"weight"}:
        _require_finite(parts[part], f"{where}.{part}")
    # Storage in another dtype (bnb_4bit_quant_storage) is the same bytes under another name.
    packed = parts["weight"].contiguous().view(torch.uint8).reshape(-1)
    absmax: torch.Tensor | NestedAbsmax = parts["absmax"]
    try:
        if state.nested_offset is not None:
            absmax = NestedAbsmax(
                parts["absmax"],
                parts["nested_absmax"],
                parts["nested_quant_map"],
                state.nested_offset,
                NESTED_BLOCK_SIZE,
            )
        shape = torch.Size(state.shape)
        return CodebookTensor(
            packed, absmax, shape, state.quant_type, state.block_size, state.dtype
        )
    except LabkitError as error:
        raise FormatError(error.what, where=where, remedy=error.remedy) from error


def _codebook_layers(layers: Mapping[str, Quantized]) -> dict[str, CodebookTensor]:
    found: dict[str, CodebookTensor] = {}
    kinds = set()
    for name, layer in layers.items():
        if not isinstance(layer, CodebookTensor):
            raise FormatError(
                f"a {type(layer).__name__}",
                where=name,
                remedy="bitsandbytes holds NF4 and FP4: quantize with labkit.quantize.nf4.",
            )
        nested = isinstance(layer.absmax, NestedAbsmax)
        if nested and layer.absmax.block_size != NESTED_BLOCK_SIZE:
            raise FormatError(
                f"nested block size {layer.absmax.block_size}",
                where=name,
                remedy=f"bitsandbytes computes with {NESTED_BLOCK_SIZE} alone.",
            )
        kinds.add((layer.quant_type, nested))
        found[name] = layer
    if len(kinds) != 1:
        raise FormatError(
            f"layers of {len(kinds)} kinds: {sorted(kinds)}",
            where="bitsandbytes",
            remedy="All layers must have one quant type, all or none with double quantization.",
        )
    return found


def _all_parts(layers: Mapping[str, CodebookTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, layer in layers.items():
        yield from layer_parts(name, layer)


def _skipped_modules(checkpoint: Checkpoint) -> list[str]:
    """The matrices that stay as they are, or transformers would take them for quantized ones.

    A tied head has no tensor of its own, so it is named in any case.
    """
    kept = {
        name.removesuffix(".weight")
        for name in checkpoint.tensors
        if name.endswith(".weight") and checkpoint.tensors[name].ndim == 2
    }
    return sorted(kept | {"lm_head"})


def _mode(folder: Folder, bits: str) -> bool:
    settings = folder.quantization
    return settings.get(f"load_in_{bits}", settings.get(f"_load_in_{bits}", False)) is True


def _four_bit(folder: Folder) -> tuple[dict[str, Quantized], set[str]]:
    layers: dict[str, Quantized] = {}
    used: set[str] = set()
    expected = folder.quantization.get("bnb_4bit_quant_type")
    for key in folder.tensors:
        name, found, quant_type = key.partition(STATE)
        if not found:
            continue
        if name in layers or f"{name}.weight" not in folder.tensors or quant_type != expected:
            raise FormatError(
                f"{key}: a second one, without its weight, or not {expected!r} as the config says",
                where=str(folder.path),
            )
        where = f"{folder.path}: {name}"
        state = read_state(_small(folder, key), quant_type, where)
        names = {part: f"{name}.weight.{part}" for part in PARTS}
        names = {part: full for part, full in names.items() if full in folder.tensors}
        names["weight"] = f"{name}.weight"
        parts = {part: folder.tensors[full] for part, full in names.items()}
        layers[name] = layer_from(state, parts, where)
        used |= {key, *names.values()}
    lost = [key for key in folder.tensors if ".weight." in key and key not in used]
    if lost:
        raise FormatError(
            f"{len(lost)} tensors belong to no layer with a quant_state, such as {lost[0]!r}",
            where=str(folder.path),
        )
    return layers, used


def _small(folder: Folder, key: str) -> torch.Tensor:
    entry = folder.tensors.entry(key)
    if entry.end - entry.begin > 4096:
        raise FormatError(f"{key}: {entry.end - entry.begin} bytes", where=str(folder.path))
    return folder.tensors[key]


def _require_book(quant_type: str, values: torch.Tensor, where: str) -> None:
    """bitsandbytes computes by the type's name and never looks at these numbers; nor do we."""
    levels = torch.tensor(BOOKS[quant_type].values)
    fits = values.shape == levels.shape and values.dtype == torch.float32
    if not fits or not torch.allclose(values, levels, rtol=0, atol=1e-4):
        raise FormatError(f"quant_map is not that of {quant_type}", where=where)


def _require_finite(part: torch.Tensor, where: str) -> None:
    if part.is_floating_point() and not bool(torch.isfinite(part).all()):
        raise FormatError("NaN or infinity", where=where, remedy="Fetch the folder again.")


def _eight_bit(folder: Folder) -> tuple[dict[str, Quantized], set[str]]:

    return read_int8(folder)
