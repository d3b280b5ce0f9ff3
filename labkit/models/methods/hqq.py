"""HQQ for the block-by-block driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.quantize import hqq


@dataclass(frozen=True)
class Hqq(Settings):
    """Half-quadratic fit of a real zero-point (`labkit.quantize.hqq`). Looks at weights alone.

    Args:
        bits: 1 to 8.
        group_size: weights along a row that share a scale and a zero.
        scale_dtype: what scales and zeros are stored in.
    """

    bits: int = 4
    group_size: int = 64
    scale_dtype: torch.dtype = torch.float16

    name: ClassVar[str] = "hqq"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "original"
    needs_inputs: ClassVar[bool] = False

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize every linear; one report for each."""
        reports = []
        for linear in block.linears:
            with block.blaming(linear):
                weight = block.weight(linear)
                quantized = hqq.quantize(
                    weight, self.bits, self.group_size, scale_dtype=self.scale_dtype
                )
                block.replace(linear, quantized)
            reports.append(layer_report(block.full_name(linear), "hqq", weight, quantized))
        return reports
