"""bitsandbytes, as transformers writes it: NF4 and FP4 to read and write, LLM.int8() to read.

A 4-bit layer X [out, in] is

    X.weight                                uint8 [ceil(out * in / 2), 1], first code in high bits
    X.weight.absmax                         float32 [blocks], or uint8 with double quantization
    X.weight.quant_map                      float32 [16]
    X.weight.quant_state.bitsandbytes__nf4  uint8: a JSON object with the rest
    X.weight.nested_absmax                  float32 [ceil(blocks / 256)]   } double quantization
    X.weight.nested_quant_map               float32 [256]                  } alone

and an 8-bit one X.weight int8 [out, in], X.SCB float32 [out] (the largest magnitude of each row)
and X.weight_format. Sources: bitsandbytes 0.50, functional.QuantState; transformers 5,
quantizers/quantizer_bnb_4bit.py.

Two things that bitsandbytes 0.50 does on a CPU. With AVX-512, and rows that are no multiple of the
block, it dequantizes with magnitudes of other blocks. With AVX512-BF16 the first forward pass
repacks a layer and rounds its magnitudes to bfloat16: logits move a little, and a model that is
saved after that is not the one that was loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.core.errors import FormatError
from labkit.core.quantized import Quantized
from labkit.formats import expecting
from labkit.formats.bitsandbytes_int8 import read_int8
from labkit.formats.bitsandbytes_layer import PARTS, STATE, layer_from, layer_parts
from labkit.formats.bitsandbytes_state import QuantState, read_state
from labkit.formats.checkpoint import (
    SHARD_BYTES,
    Checkpoint,
    Folder,
    Lazy,
    Without,
    read_folder,
    write_folder,
)
from labkit.quantize.dynamic_map import NESTED_BLOCK_SIZE


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

    What the layers say of themselves is checked now; their numbers are read when asked for.

    Raises:
        FormatError: damaged or hostile files, parts that are missing or do not fit each other, a
            config that contradicts the tensors.
    """
    folder = read_folder(path)
    settings, where = folder.quantization, folder.path
    expecting.only(settings, "quant_method", where, ["bitsandbytes"])
    four = expecting.flag(settings, "load_in_4bit", where, settings.get("_load_in_4bit") is True)
    eight = expecting.flag(settings, "load_in_8bit", where, settings.get("_load_in_8bit") is True)
    if four == eight:
        raise FormatError(
            "one of load_in_4bit and load_in_8bit must be true", where=str(where / "config.json")
        )
    layers, used = _four_bit(folder) if four else read_int8(folder)
    if not layers:
        raise FormatError(
            "no quantized layer in the tensors, though the config says that there are",
            where=str(where),
            remedy="Weights and config.json belong to different models.",
        )
    return Checkpoint(folder.config, Without(folder.tensors, used), layers, folder.files)


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


def _skipped_modules(checkpoint: Checkpoint) -> list[str] | None:
    """Linear layers of the blocks that stay as they are, and then the head, tied or not.

    None, where there are none, leaves it to transformers, which keeps the head by itself.
    """
    parents = {name.rsplit(".", 1)[0] for name in checkpoint.layers if "." in name}
    modules = {n.removesuffix(".weight") for n in checkpoint.tensors if n.endswith(".weight")}
    left = {m for m in modules - set(checkpoint.layers) if m.rsplit(".", 1)[0] in parents}
    return sorted(left | {"lm_head", "embed_out"}) if left else None


def _four_bit(folder: Folder) -> tuple[Mapping[str, Quantized], set[str]]:
    states: dict[str, QuantState] = {}
    used: set[str] = set()
    for key in folder.tensors:
        name, found, quant_type = key.partition(STATE)
        if not found:
            continue
        if name in states or quant_type != folder.quantization.get("bnb_4bit_quant_type"):
            raise FormatError(
                f"{key!r}: a second state, or another quant type than in config.json",
                where=str(folder.path),
            )
        states[name] = _state(folder, name, key, quant_type)
        used |= {key, *_names(folder, name).values()}
    lost = [key for key in folder.tensors if ".weight." in key and key not in used]
    if lost:
        raise FormatError(
            f"{len(lost)} tensors belong to no layer with a quant_state, such as {lost[0]!r}",
            where=str(folder.path),
        )

    def read(name: str) -> CodebookTensor:
        parts = {part: folder.tensors[full] for part, full in _names(folder, name).items()}
        return layer_from(states[name], parts, f"{folder.path}: {name}")

    return Lazy(states, read), used


def _names(folder: Folder, name: str) -> dict[str, str]:
    """The parts that layer ``name`` has, and what their tensors are called."""
    names = {part: f"{name}.weight.{part}" for part in PARTS} | {"weight": f"{name}.weight"}
    return {part: full for part, full in names.items() if full in folder.tensors}


def _state(folder: Folder, name: str, key: str, quant_type: str) -> QuantState:
    """The layer's quant_state, which must ask for as many codes as there are."""
    where = f"{folder.path}: {name}"
    entry = folder.tensors.entry(key)
    if entry.end - entry.begin > 4096:
        raise FormatError(f"a quant_state of {entry.end - entry.begin} bytes", where=where)
    state = read_state(folder.tensors[key], quant_type, where)
    if f"{name}.weight" not in folder.tensors:
        raise FormatError("a quant_state without a weight", where=where)
    weight = folder.tensors.entry(f"{name}.weight")
    if weight.end - weight.begin != (math.prod(state.shape) + 1) // 2:
        raise FormatError(
            f"{weight.end - weight.begin} bytes of codes for shape {list(state.shape)}", where=where
        )
    return state
