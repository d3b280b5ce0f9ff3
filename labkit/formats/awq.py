"""The AWQ format, version "gemm": what AutoAWQ writes and transformers and vLLM read. 4 bits alone.

A layer "X" with W [out, in] and groups of g inputs is stored as

    X.qweight   int32   [in, out / 8]         codes 0..15, packed along out
    X.qzeros    int32   [in / g, out / 8]     zero-points 0..15, packed along out; no offset
    X.scales    float16 [in / g, out]

and W[o, i] = scales[i // g, o] * (q[i, o] - z[i // g, o]). Eight neighbours share a word, but not
in order: the nibble at bits 4i .. 4i+3 holds column [0, 2, 4, 6, 1, 3, 5, 7][i] of the eight. The
GPU kernel takes even and odd columns as the halves of 16-bit lanes, and so needs no shuffle.

There is no symmetric variant: such a layer is written with the zero-point 8 everywhere, which has
the same values, and is read back as an asymmetric one.
Sources: AutoAWQ 0.2.9, modules/linear/gemm.py (from_linear), utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from labkit.core.errors import FormatError
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
from labkit.formats.words import pack_rows, unpack_rows

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble -> column
INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)  # column -> nibble
PARTS = ("qweight", "qzeros", "scales")


def save(checkpoint: Checkpoint, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a folder in the AWQ format.

    Linear layers of the blocks that are not quantized are named in ``modules_to_not_convert``, or
    readers would look for their codes.

    Raises:
        FormatError: layers that the format cannot hold: not 4 bits, act-order (g_idx), two
            schemes, out no multiple of 8, scales beyond float16, a layer that is quantized in some
            blocks alone.
        StorageError: the disk is full; nothing is left.
    """
    scheme = expecting.uniform_scheme(checkpoint.layers, "awq")
    if scheme.bits != BITS or scheme.granularity not in ("channel", "group"):
        raise FormatError(
            str(scheme), where="awq", remedy="AWQ holds 4 bits, by channel or by group."
        )
    settings: dict[str, object] = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": BITS,
        "group_size": scheme.group_size or -1,
        "zero_point": True,
        "modules_to_not_convert": _unquantized(checkpoint),
    }
    write_folder(path, checkpoint, _packed(checkpoint), settings, overwrite=overwrite)


def load(path: Path | str) -> Checkpoint:
    """Read a folder in the AWQ format; each layer is unpacked when it is asked for.

    Raises:
        FormatError: damaged or hostile files, config.json that disagrees with the tensors, or
            another version than "gemm".
    """
    folder = read_folder(path)
    settings, where = folder.quantization, folder.path
    # quant_config.json, of AutoAWQ before 0.1.8, has other names for the same.
    for old, new in (("w_bit", "bits"), ("q_group_size", "group_size")):
        if old in settings:
            settings[new] = settings.pop(old)
    expecting.only(settings, "quant_method", where, ["awq"])
    expecting.only(settings, "version", where, ["gemm", "GEMM"])
    expecting.only(settings, "bits", where, [BITS])
    expecting.only(settings, "zero_point", where, [True])
    names = expecting.layer_names(folder.tensors, "qweight", where)
    for name in names:
        _check_layer(folder, name)
    parts = [f"{name}.{part}" for name in names for part in PARTS]
    return Checkpoint(
        folder.config,
        Without(folder.tensors, parts),
        Lazy(names, partial(_unpacked, folder)),
        folder.files,
    )


def _unquantized(checkpoint: Checkpoint) -> list[str] | None:
    """What AutoAWQ must leave alone, as it names it: within a block, and in every block alike."""
    left: dict[str, str] = {}
    for name in expecting.unquantized_linears(checkpoint.tensors, checkpoint.layers):
        left[_within_block(name)] = name
    for name in checkpoint.layers:
        for short, full in left.items():
            if short in _within_block(name):
                raise FormatError(
                    f"{full!r} is not quantized and {name!r} is",
                    where="awq",
                    remedy="AWQ leaves a layer out of all blocks or of none; do the same.",
                )
    return sorted(left) or None


def _within_block(name: str) -> str:
    """ "mlp.up_proj" for "model.layers.3.mlp.up_proj"."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(parts[first + 1 :])


def _packed(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for name in checkpoint.layers:
        layer = expecting.integers(checkpoint.layers[name], name, "awq")
        rows, columns = layer.shape
        if layer.g_idx is not None or rows % 8:
            raise FormatError(
                f"layer {name!r} is [{rows}, {columns}]"
                + (", with g_idx" if layer.g_idx is not None else ""),
                where="awq",
                remedy="out must be a multiple of 8, and groups must be neighbours (no act-order).",
            )
        offset = 2 ** (BITS - 1) if layer.scheme.symmetric else 0
        codes = layer.codes.to(torch.int16) + offset
        zeros = torch.full_like(layer.scale, offset, dtype=torch.int32)
        if layer.zero_point is not None:
            zeros = layer.zero_point
        yield f"{name}.qweight", _interleave(codes.T)
        yield f"{name}.qzeros", _interleave(zeros.T)
        yield f"{name}.scales", expecting.half_scales(layer, name, "awq").T.contiguous()


def _interleave(codes: torch.Tensor) -> torch.Tensor:
    """Codes [n, out] as int32 [n, out / 8], in the order of the kernel."""
    eights = codes.reshape(codes.shape[0], -1, 8)[:, :, list(ORDER)]
    return pack_rows(eights.reshape(codes.shape), BITS)


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, out / 8] as uint8 codes [n, out]: `_interleave` undone."""
    codes = unpack_rows(words, BITS, words.shape[1] * 8)
    return codes.reshape(words.shape[0], -1, 8)[:, :, list(INVERSE)].reshape(codes.shape)


def _check_layer(folder: Folder, name: str) -> None:
    """Types and shapes, from the headers."""
    tensors, where = folder.tensors, folder.path
    columns, words = expecting.matrix_shape(tensors, f"{name}.qweight", where)
    size = expecting.integer(folder.quantization, "group_size", where)
    groups = expecting.groups_of(columns, size, name, where)
    expecting.require(tensors, f"{name}.qweight", where, (columns, words), [torch.int32])
    expecting.require(tensors, f"{name}.qzeros", where, (groups, words), [torch.int32])
    expecting.require(tensors, f"{name}.scales", where, (groups, words * 8), expecting.FLOATS)


def _unpacked(folder: Folder, name: str) -> QuantizedTensor:
    tensors, where = folder.tensors, folder.path
    codes = _in_order(tensors[f"{name}.qweight"]).T.contiguous()
    zeros = _in_order(tensors[f"{name}.qzeros"]).T.to(torch.int32).contiguous()
    scale = expecting.finite(tensors[f"{name}.scales"], f"{name}.scales", where).T.contiguous()
    columns, groups = codes.shape[1], scale.shape[1]
    size = expecting.integer(folder.quantization, "group_size", where)
    scheme = expecting.scheme_of(BITS, False, *expecting.by_group(size, columns, groups), where)
    return expecting.assembled(QuantizedTensor, codes, scale, zeros, scheme, layer=name, path=where)
