"""LLM.int8() layers of a bitsandbytes folder, read as per-channel int8.

    X.weight         int8 [out, in], -127 .. 127
    X.SCB            float32 [out], the largest magnitude of each row: scale = SCB / 127
    X.weight_format  uint8, 0: rows, the only layout that is still written

What LLM.int8() does with activations (outlier columns in floating point) is not in the file.
"""

from __future__ import annotations

import torch

from labkit.core.errors import FormatError
from labkit.core.quantized import Quantized
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.formats.checkpoint import Folder


def read_int8(folder: Folder) -> tuple[dict[str, Quantized], set[str]]:
    """The 8-bit layers by name, and the names of the tensors that they are made of.

    Raises:
        FormatError: an SCB without an int8 weight of as many rows, scales that are negative or not
            finite, or a layout of columns, as bitsandbytes before 0.37 wrote on a GPU.
    """
    layers: dict[str, Quantized] = {}
    used: set[str] = set()
    for key in folder.tensors:
        name = key.removesuffix(".SCB")
        if name == key:
            continue
        names = {f"{name}.weight", key}
        if f"{name}.weight_format" in folder.tensors:
            names.add(f"{name}.weight_format")
            if bool((folder.tensors[f"{name}.weight_format"] != 0).any()):
                raise FormatError("weights in columns", where=f"{folder.path}: {name}")
        layers[name] = _layer(folder, name)
        used |= names
    return layers, used


def _layer(folder: Folder, name: str) -> QuantizedTensor:
    where = f"{folder.path}: {name}"
    if f"{name}.weight" not in folder.tensors:
        raise FormatError("an SCB without a weight", where=where)
    codes, peaks = folder.tensors[f"{name}.weight"], folder.tensors[f"{name}.SCB"].float()
    peaks = peaks.reshape(-1)
    if codes.dtype != torch.int8 or codes.ndim != 2 or peaks.numel() != codes.shape[0]:
        raise FormatError(
            f"weight {codes.dtype} {tuple(codes.shape)} with {peaks.numel()} scales", where=where
        )
    if not bool((torch.isfinite(peaks) & (peaks >= 0)).all()):
        raise FormatError("a scale that is negative or not finite", where=where)
    return QuantizedTensor(codes, (peaks / 127)[:, None], None, QuantScheme(8))
