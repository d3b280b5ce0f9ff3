"""LLM.int8(), block by block: the int8 weights. What it splits off is decided when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.quantize import llm_int8


@dataclass(frozen=True)
class LlmInt8(Settings):
    """`labkit.quantize.llm_int8` on every linear of a block; needs no calibration text.

    The decomposition belongs to the activations: `labkit.models.activations.with_llm_int8` runs
    it, and `float_shares` tells how many columns it took.
    """

    name: ClassVar[str] = "llm_int8"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "quantized"
    needs_inputs: ClassVar[bool] = False

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize every linear by itself."""
        reports = []
        for linear in block.linears:
            weight = block.weight(linear)
            with block.blaming(linear):
                quantized = llm_int8.quantize(weight)
            block.replace(linear, quantized)
            reports.append(layer_report(block.full_name(linear), self.name, weight, quantized))
        return reports
