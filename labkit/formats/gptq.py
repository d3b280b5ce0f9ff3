"""The GPTQ format, v1 and v2: what AutoGPTQ began and GPTQModel, transformers and vLLM read.

A layer "X" with W [out, in], b bits (2, 3, 4 or 8) and groups of g inputs is stored as

    X.qweight   int32   [in * b / 32, out]         codes, packed along in, low bits first
    X.qzeros    int32   [in / g, out * b / 32]     zero-points, packed along out
    X.scales    float16 [in / g, out]
    X.g_idx     int32   [in]                       the group of each input (act-order shuffles it)

and W[o, i] = scales[g_idx[i], o] * (q[i, o] - z[g_idx[i], o]). Codes are unsigned; a symmetric one
is ours plus 2^(b-1), and its zero-point is 2^(b-1).

How zero-points are stored is what v1 and v2 differ in: `labkit.formats.gptq_zeros`, on the trap of
v1. Sources: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py and qlinear_cuda.py (pack,
forward); GPTQModel 7.6.0, nn_modules/qlinear/torch.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from labkit.core.errors import FormatError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.formats import expecting
from labkit.formats.checkpoint import (
    Checkpoint,
    Folder,
    Lazy,
    Without,
    read_folder,
    write_folder,
)
from labkit.formats.gptq_zeros import VERSIONS, from_stored, to_stored, version_of
from labkit.formats.words import pack_rows, unpack_rows

BITS = (2, 3, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def save(
    checkpoint: Checkpoint,
    path: Path | str,
    *,
    version: str = "gptq",
    damp_percent: float = 0.01,
    static_groups: bool = False,
    true_sequential: bool = True,
    overwrite: bool = False,
) -> None:
    """Write a folder in the GPTQ format.

    Args:
        version: "gptq" (v1, which every reader knows) or "gptq_v2" (GPTQModel, vLLM).
        damp_percent, static_groups, true_sequential: how the layers were quantized; readers show
            it, and compute nothing with it.
        overwrite: replace a folder that is there.

    Raises:
        FormatError: layers that the format cannot hold: other widths than 2, 3, 4 and 8, two
            schemes, sides that are no multiple of 32, scales beyond float16, or a zero-point of 0
            in v1.
        StorageError: the disk is full; nothing is left.
    """
    if version not in VERSIONS:
        raise FormatError(f"version {version!r}", remedy=f"Choose from {', '.join(VERSIONS)}.")
    scheme = expecting.uniform_scheme(checkpoint.layers, version)
    if scheme.bits not in BITS or scheme.granularity not in ("channel", "group"):
        raise FormatError(
            str(scheme), where=version, remedy="GPTQ holds 2, 3, 4 or 8 bits, by channel or group."
        )
    settings: dict[str, object] = {
        "quant_method": "gptq",
        "checkpoint_format": version,
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": any(_reordered(checkpoint.layers[name]) for name in checkpoint.layers),
        "static_groups": static_groups,
        "true_sequential": true_sequential,
        "damp_percent": damp_percent,
        "lm_head": "lm_head" in checkpoint.layers,
    }
    write_folder(
        path,
        checkpoint,
        _packed(checkpoint, version),
        settings,
        extra={"quantize_config.json": settings},
        overwrite=overwrite,
    )


def load(path: Path | str) -> Checkpoint:
    """Read a folder in the GPTQ format; each layer is unpacked when it is asked for.

    Raises:
        FormatError: damaged or hostile files, config.json that disagrees with the tensors, or a
            v1 zero-point that its readers do not agree about.
    """
    folder = read_folder(path)
    settings, where = folder.quantization, folder.path
    expecting.only(settings, "quant_method", where, ["gptq"])
    expecting.only(settings, "is_marlin_format", where, [False])
    expecting.only(settings, "dynamic", where, [None, {}])
    expecting.only(settings, "pack_dtype", where, ["int32"])
    for key in ("checkpoint_format", "format"):
        expecting.only(settings, key, where, VERSIONS)
    bits = expecting.integer(settings, "bits", where)
    if bits not in BITS:
        raise FormatError(f"bits is {bits}", where=str(where), remedy="GPTQ has 2, 3, 4 or 8.")
    names = expecting.layer_names(folder.tensors, "qweight", where)
    for name in names:
        _check_layer(folder, name, bits)
    parts = [f"{name}.{part}" for name in names for part in PARTS]
    return Checkpoint(
        folder.config,
        Without(folder.tensors, parts),
        Lazy(names, partial(_unpacked, folder, bits)),
        folder.files,
    )


def _packed(checkpoint: Checkpoint, version: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name in checkpoint.layers:
        layer = expecting.integers(checkpoint.layers[name], name, version)
        rows, columns = layer.shape
        if rows % 32 or columns % 32:
            raise FormatError(
                f"layer {name!r} is [{rows}, {columns}]",
                where=version,
                remedy="Both sides must be multiples of 32; leave this layer unquantized.",
            )
        bits, symmetric = layer.scheme.bits, layer.scheme.symmetric
        offset = 2 ** (bits - 1) if symmetric else 0
        codes = layer.codes.to(torch.int16) + offset
        zeros = torch.full_like(layer.scale, offset, dtype=torch.int32)
        if layer.zero_point is not None:
            zeros = layer.zero_point
        yield f"{name}.qweight", pack_rows(codes, bits).T.contiguous()
        yield f"{name}.qzeros", pack_rows(to_stored(zeros, version, name).T.contiguous(), bits)
        yield f"{name}.scales", expecting.half_scales(layer, name, version).T.contiguous()
        yield f"{name}.g_idx", _group_indices(layer)


def _group_indices(layer: QuantizedTensor) -> torch.Tensor:
    if layer.g_idx is not None:
        return layer.g_idx.to(torch.int32)
    columns = layer.shape[1]
    return torch.arange(columns, dtype=torch.int32) // (columns // layer.scale.shape[1])


def _reordered(layer: object) -> bool:
    """Whether columns lie in other groups than their neighbours."""
    if not isinstance(layer, QuantizedTensor) or layer.g_idx is None:
        return False
    in_order = QuantizedTensor(layer.codes, layer.scale, layer.zero_point, layer.scheme)
    return not torch.equal(_group_indices(layer), _group_indices(in_order))


def _check_layer(folder: Folder, name: str, bits: int) -> None:
    """Types and shapes, from the headers."""
    tensors, where = folder.tensors, folder.path
    columns, rows = _sides(folder, name, bits)
    size = expecting.integer(folder.quantization, "group_size", where)
    groups = expecting.groups_of(columns, size, name, where)
    words = rows * bits // 32
    expecting.require(
        tensors, f"{name}.qweight", where, (columns * bits // 32, rows), [torch.int32]
    )
    expecting.require(tensors, f"{name}.qzeros", where, (groups, words), [torch.int32])
    expecting.require(tensors, f"{name}.scales", where, (groups, rows), expecting.FLOATS)
    if f"{name}.g_idx" in tensors:
        expecting.require(tensors, f"{name}.g_idx", where, (columns,), [torch.int32, torch.int64])


def _sides(folder: Folder, name: str, bits: int) -> tuple[int, int]:
    """(in, out) of a layer."""
    words, rows = expecting.matrix_shape(folder.tensors, f"{name}.qweight", folder.path)
    if words * 32 % bits or rows * bits % 32:
        raise FormatError(
            f"{name}.qweight of shape [{words}, {rows}] holds no whole number of {bits}-bit codes",
            where=str(folder.path),
            remedy="config.json and the weights do not belong together; fetch both again.",
        )
    return words * 32 // bits, rows


def _unpacked(folder: Folder, bits: int, name: str) -> QuantizedTensor:
    tensors, where = folder.tensors, folder.path
    columns, rows = _sides(folder, name, bits)
    codes = unpack_rows(tensors[f"{name}.qweight"].T.contiguous(), bits, columns)
    zeros = unpack_rows(tensors[f"{name}.qzeros"], bits, rows).T.to(torch.int32).contiguous()
    zeros = from_stored(zeros, version_of(folder.quantization), bits, f"{name}.qzeros in {where}")
    scale = expecting.finite(tensors[f"{name}.scales"], f"{name}.scales", where).T.contiguous()
    groups = scale.shape[1]
    size = expecting.integer(folder.quantization, "group_size", where)
    middle = 2 ** (bits - 1)
    symmetric = expecting.flag(
        folder.quantization, "sym", where, default=bool((zeros == middle).all())
    )
    if symmetric and not bool((zeros == middle).all()):
        raise FormatError(
            f"layer {name!r} has zero-points other than {middle}, and config.json says sym",
            where=str(where),
            remedy="config.json and the weights do not belong together; fetch both again.",
        )
    scheme = expecting.scheme_of(bits, symmetric, *expecting.by_group(size, columns, groups), where)
    if symmetric:
        codes = (codes.to(torch.int16) - middle).to(torch.int8)
    g_idx = _read_g_idx(folder, name, scheme, columns)
    return expecting.assembled(
        QuantizedTensor,
        codes,
        scale,
        None if symmetric else zeros,
        scheme,
        g_idx,
        layer=name,
        path=where,
    )


def _read_g_idx(
    folder: Folder, name: str, scheme: QuantScheme, columns: int
) -> torch.Tensor | None:
    """The group of each column; None where neighbours share one, as everywhere but in act-order."""
    if f"{name}.g_idx" not in folder.tensors:
        return None
    g_idx = folder.tensors[f"{name}.g_idx"].to(torch.int32)
    size = scheme.group_size or columns
    if torch.equal(g_idx, torch.arange(columns, dtype=torch.int32) // size):
        return None
    if scheme.granularity == "channel":
        raise FormatError(f"{name}.g_idx names groups, and there is one", where=str(folder.path))
    return g_idx
