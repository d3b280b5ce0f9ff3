"""NF4 and FP4 for the block-by-block driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.quantize import nf4


@dataclass(frozen=True)
class Nf4(Settings):
    """16 numbers and an absmax for each block (`labkit.quantize.nf4`). Looks at weights alone.

    Args:
        quant_type: "nf4" or "fp4".
        block_size: weights that share an absmax.
        double_quantization: keep the absmax values in 8 bits.
    """

    quant_type: str = "nf4"
    block_size: int = 64
    double_quantization: bool = True

    name: ClassVar[str] = "nf4"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "original"
    needs_inputs: ClassVar[bool] = False

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize every linear; one report for each."""
        reports = []
        for linear in block.linears:
            with block.blaming(linear):
                weight = block.weight(linear)
                quantized = nf4.quantize(
                    weight,
                    quant_type=self.quant_type,
                    block_size=self.block_size,
                    double_quantization=self.double_quantization,
                )
                block.replace(linear, quantized)
            reports.append(
                layer_report(block.full_name(linear), self.quant_type, weight, quantized)
            )
        return reports
