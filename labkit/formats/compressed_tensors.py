"""The compressed-tensors formats: what llm-compressor writes and transformers and vLLM read.

A layer "X" with W [out, in] is stored in one of three ways:

    pack-quantized (INT4, INT8 weights)
        X.weight_packed       int32 [out, ceil(in * b / 32)]        codes along in, low bits first
        X.weight_scale        float [out, in / g], or [out, 1]
        X.weight_shape        int64 [2]
        X.weight_zero_point   int32 [ceil(out * b / 32), in / g]    asymmetric; packed along out
        X.weight_g_idx        int32 [in]                            act-order in groups
    int-quantized (INT8 weights and inputs)
        X.weight              int8  [out, in],  X.weight_scale  [out, 1] or [1]
    float-quantized (FP8 weights and inputs)
        X.weight              float8_e4m3fn [out, in],  X.weight_scale  [out, 1] or [1]

and X.input_scale [1] where the scale of the inputs was measured beforehand. Codes are signed, also
asymmetric ones (-2^(b-1) .. 2^(b-1)-1, their zero-points too); packed they are plus 2^(b-1). So
what is packed of an asymmetric code is our unsigned code itself.

compressed-tensors 0.19 refuses act-order in groups (g_idx, "actorder": "group"), which it read
until August 2026; labkit still reads and writes it, for older readers.
Sources: compressed-tensors 0.19.0, compressors/pack_quantized/{base,helpers}.py,
compressors/naive_quantized/base.py, quantization/quant_args.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from labkit.core.errors import FormatError
from labkit.core.float8_tensor import FP8, Float8Tensor
from labkit.core.quantized import Quantized
from labkit.core.tensor import QuantizedTensor
from labkit.formats import compressed_config as config
from labkit.formats import expecting
from labkit.formats.checkpoint import (
    Checkpoint,
    Folder,
    Lazy,
    Without,
    read_folder,
    write_folder,
)
from labkit.formats.compressed_config import FLOAT, INT, PACK, Settings
from labkit.formats.inputs import InputQuantization
from labkit.formats.words import pack_rows, unpack_rows, words_a_row

PARTS = {
    PACK: ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    INT: ("weight", "weight_scale", "weight_zero_point", "input_scale"),
    FLOAT: ("weight", "weight_scale", "input_scale"),
}


def save(checkpoint: Checkpoint, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a folder in the format that fits the layers.

    FP8 layers: float-quantized. Integers with quantized inputs: int-quantized (8 bits, by channel
    or tensor). Integers alone: pack-quantized (4 or 8 bits, by channel or group).

    Raises:
        FormatError: layers that none of the three can hold, two schemes, or inputs that are
            quantized in some layers alone.
        StorageError: the disk is full; nothing is left.
    """
    settings = config.settings_of(checkpoint)
    left_out = expecting.unquantized_linears(checkpoint.tensors, checkpoint.layers)
    if "lm_head" not in checkpoint.layers:
        left_out.append("lm_head")
    write_folder(
        path,
        checkpoint,
        _packed(checkpoint, settings),
        config.to_json(settings, left_out),
        overwrite=overwrite,
    )


def load(path: Path | str) -> Checkpoint:
    """Read a folder in one of the three formats; each layer is unpacked when it is asked for.

    Raises:
        FormatError: damaged or hostile files, config.json that disagrees with the tensors, or a
            scheme that labkit does not know: several config groups, quantized outputs or caches,
            block-wise FP8, sparsity.
    """
    folder = read_folder(path)
    where = folder.path
    settings = config.from_json(folder.quantization, where)
    names = expecting.layer_names(folder.tensors, "weight_scale", where)
    ignored = folder.quantization.get("ignore") or []
    for name in names:
        if isinstance(ignored, list) and name in ignored:
            raise FormatError(
                f"layer {name!r} is quantized, and config.json says that it is not",
                where=str(where),
            )
        _check_layer(folder, settings, name)
    parts = [f"{name}.{part}" for name in names for part in PARTS[settings.format]]
    inputs = {name: _inputs(folder, settings, name) for name in names} if settings.inputs else {}
    return Checkpoint(
        folder.config,
        Without(folder.tensors, parts),
        Lazy(names, partial(_unpacked, folder, settings)),
        folder.files,
        inputs,
    )


def _packed(checkpoint: Checkpoint, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
    for name in checkpoint.layers:
        layer = checkpoint.layers[name]
        if isinstance(layer, Float8Tensor):
            yield f"{name}.weight", layer.codes
            yield f"{name}.weight_scale", _flat_if_single(layer.scale, settings)
        elif settings.format == INT:
            integers = expecting.integers(layer, name, INT)
            yield f"{name}.weight", _signed(integers.codes, integers)
            yield f"{name}.weight_scale", _flat_if_single(integers.scale, settings)
            if integers.zero_point is not None:
                zeros = _signed(integers.zero_point, integers)
                yield f"{name}.weight_zero_point", _flat_if_single(zeros, settings)
        else:
            yield from _packed_layer(expecting.integers(layer, name, PACK), name)
        measured = checkpoint.inputs[name].scale if checkpoint.inputs else None
        if measured is not None:
            yield f"{name}.input_scale", measured.reshape(1)


def _packed_layer(layer: QuantizedTensor, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    bits = layer.scheme.bits
    offset = 2 ** (bits - 1) if layer.scheme.symmetric else 0
    yield f"{name}.weight_packed", pack_rows(layer.codes.to(torch.int16) + offset, bits)
    yield f"{name}.weight_scale", layer.scale
    yield f"{name}.weight_shape", torch.tensor(layer.shape, dtype=torch.int64)
    if layer.zero_point is not None:
        zeros = pack_rows(layer.zero_point.T.contiguous(), bits).T.contiguous()
        yield f"{name}.weight_zero_point", zeros
    if layer.g_idx is not None:
        yield f"{name}.weight_g_idx", layer.g_idx.to(torch.int32)


def _signed(codes: torch.Tensor, layer: QuantizedTensor) -> torch.Tensor:
    """int8, as the format has it, whether our codes are signed or not."""
    offset = 0 if layer.scheme.symmetric else 2 ** (layer.scheme.bits - 1)
    return (codes.to(torch.int16) - offset).to(torch.int8)


def _flat_if_single(scale: torch.Tensor, settings: Settings) -> torch.Tensor:
    return scale.reshape(1) if settings.granularity == "tensor" else scale


def _check_layer(folder: Folder, settings: Settings, name: str) -> None:
    """Types and shapes, from the headers (and weight_shape, which is two numbers)."""
    tensors, where = folder.tensors, folder.path
    rows, columns = _sides(folder, settings, name)
    bits = settings.bits
    groups = 1
    if settings.granularity == "group":
        groups = expecting.groups_of(columns, settings.group_size or -1, name, where)
    single = settings.granularity == "tensor"
    scales = (1,) if single else (rows, groups)
    expecting.require(tensors, f"{name}.weight_scale", where, scales, expecting.FLOATS)
    if settings.format == PACK:
        words = words_a_row(columns, bits)
        expecting.require(tensors, f"{name}.weight_packed", where, (rows, words), [torch.int32])
        zeros, kind = (words_a_row(rows, bits), groups), torch.int32
    else:
        kind = torch.int8 if settings.format == INT else FP8
        expecting.require(tensors, f"{name}.weight", where, (rows, columns), [kind])
        zeros = scales
    if not settings.symmetric:
        expecting.require(tensors, f"{name}.weight_zero_point", where, zeros, [kind])
    if f"{name}.weight_g_idx" in tensors:
        expecting.require(tensors, f"{name}.weight_g_idx", where, (columns,), [torch.int32])


def _sides(folder: Folder, settings: Settings, name: str) -> tuple[int, int]:
    """(out, in) of a layer."""
    if settings.format != PACK:
        if f"{name}.weight" not in folder.tensors:
            raise FormatError(f"no tensor {name + '.weight'!r}", where=str(folder.path))
        return expecting.matrix_shape(folder.tensors, f"{name}.weight", folder.path)
    expecting.require(
        folder.tensors, f"{name}.weight_shape", folder.path, (2,), [torch.int64, torch.int32]
    )
    rows, columns = folder.tensors[f"{name}.weight_shape"].tolist()
    if rows < 1 or columns < 1:
        raise FormatError(f"{name}.weight_shape is [{rows}, {columns}]", where=str(folder.path))
    return rows, columns


def _unpacked(folder: Folder, settings: Settings, name: str) -> Quantized:
    tensors, where = folder.tensors, folder.path
    rows, columns = _sides(folder, settings, name)
    scale = expecting.finite(tensors[f"{name}.weight_scale"], f"{name}.weight_scale", where)
    if settings.format == FLOAT:
        codes = tensors[f"{name}.weight"]
        expecting.finite(codes.to(torch.float32), f"{name}.weight", where)
        scale = scale.reshape(-1, 1)
        return expecting.assembled(Float8Tensor, codes, scale, layer=name, path=where)
    bits, symmetric = settings.bits, settings.symmetric
    scheme = expecting.scheme_of(bits, symmetric, settings.granularity, settings.group_size, where)
    middle = 2 ** (bits - 1)
    zeros = None if symmetric else tensors[f"{name}.weight_zero_point"]
    if settings.format == PACK:
        codes = unpack_rows(tensors[f"{name}.weight_packed"], bits, columns).to(torch.int16)
        if zeros is not None:
            zeros = unpack_rows(zeros.T.contiguous(), bits, rows).T.contiguous()
    else:
        codes = tensors[f"{name}.weight"].to(torch.int16) + middle
        if zeros is not None:
            zeros = zeros.to(torch.int16) + middle
        scale, zeros = scale.reshape(-1, 1), None if zeros is None else zeros.reshape(-1, 1)
    codes = (codes - middle).to(torch.int8) if symmetric else codes.to(torch.uint8)
    zeros = None if zeros is None else zeros.to(torch.int32)
    g_idx = tensors.get(f"{name}.weight_g_idx")
    return expecting.assembled(
        QuantizedTensor, codes, scale, zeros, scheme, g_idx, layer=name, path=where
    )


def _inputs(folder: Folder, settings: Settings, name: str) -> InputQuantization:
    assert settings.inputs is not None
    scale = None
    if settings.inputs.measured:
        place = f"{name}.input_scale"
        expecting.require(folder.tensors, place, folder.path, (1,), expecting.FLOATS)
        scale = expecting.finite(folder.tensors[place], place, folder.path)
        if not bool(scale > 0):
            raise FormatError(f"{place} is {float(scale)}", where=str(folder.path))
    kind = "float" if settings.format == FLOAT else "int"
    return InputQuantization(kind, settings.inputs.granularity, scale)
