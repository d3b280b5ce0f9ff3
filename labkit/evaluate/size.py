"""How big a model is: bytes on disk, and true bits per weight with all metadata counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from labkit.models.apply import LayerReport
from labkit.models.gguf_report import Conversion

MEGABYTE = 1_000_000
_FULL_BITS = 16  # weights that are not quantized are stored as bfloat16


@dataclass(frozen=True)
class Size:
    """Bits per weight over the quantized layers alone, and bytes of the whole model."""

    bits_per_weight: float
    total_bytes: int

    @property
    def megabytes(self) -> float:
        return self.total_bytes / MEGABYTE


def parameter_count(model: nn.Module) -> int:
    """Parameters, each shared one (tied embeddings) counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_size(model: nn.Module, reports: list[LayerReport], full_bits: int = _FULL_BITS) -> Size:
    """Size of a model whose reported layers are stored as integers and the rest at `full_bits`.

    `bits_per_weight` is that of the quantized layers; without any, it is `full_bits`.
    """
    total = parameter_count(model)
    if not reports:
        return Size(float(full_bits), total * full_bits // 8)
    layers = [report.quantized for report in reports if report.quantized is not None]
    weights = sum(layer.shape.numel() for layer in layers)
    bits = sum(layer.bits_per_weight * layer.shape.numel() for layer in layers)
    stored = sum(layer.nbytes for layer in layers)
    return Size(bits / weights, stored + (total - weights) * full_bits // 8)


def gguf_size(conversion: Conversion) -> Size:
    """Size of a GGUF file's tensors; `bits_per_weight` is that of its matrices."""
    matrices = [tensor for tensor in conversion.tensors if len(tensor.shape) > 1]
    bits = 8 * sum(tensor.nbytes for tensor in matrices)
    total = sum(tensor.nbytes for tensor in conversion.tensors)
    return Size(bits / sum(tensor.weights for tensor in matrices), total)


def bytes_on_disk(folder: Path) -> int:
    """Bytes of the weight files in a model folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
