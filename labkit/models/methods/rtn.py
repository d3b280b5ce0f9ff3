"""Round-to-nearest, block by block: needs no calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from labkit.core.scheme import QuantScheme
from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.quantize import rtn


@dataclass(frozen=True)
class Rtn(Settings):
    """Each weight goes to the nearest point of its grid (`labkit.quantize.rtn`).

    `clip`: "none" lets the range span the weights, "mse" searches the range of least error.
    """

    scheme: QuantScheme
    clip: Literal["none", "mse"] = "none"
    scale_dtype: torch.dtype = torch.float16

    name: ClassVar[str] = "rtn"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "quantized"
    needs_inputs: ClassVar[bool] = False

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize every linear by itself."""
        reports = []
        for linear in block.linears:
            weight = block.weight(linear)
            with block.blaming(linear):
                quantized = rtn.quantize(
                    weight, self.scheme, clip=self.clip, scale_dtype=self.scale_dtype
                )
            block.replace(linear, quantized)
            reports.append(layer_report(block.full_name(linear), self.name, weight, quantized))
        return reports
