"""LLM.int8(), block by block: int8 weights, and a count of the loud columns that they will meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.quantize import llm_int8


@dataclass(frozen=True)
class LlmInt8(Settings):
    """`labkit.quantize.llm_int8` on every linear of a block.

    The decomposition happens when the model runs (`labkit.models.activations.with_llm_int8`):
    nothing of it is stored. With calibration inputs each report says how many columns would have
    been split off, and the relative error of the outputs that decomposition leaves.

    `threshold`: |x| from which a column of the input counts as loud.
    """

    threshold: float = llm_int8.THRESHOLD

    name: ClassVar[str] = "llm_int8"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "original"
    needs_inputs: ClassVar[bool] = False

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize every linear by itself; look at its inputs if there are any."""
        weights = {name: block.weight(name) for name in block.linears}
        integers = {}
        for name, weight in weights.items():
            with block.blaming(name):
                integers[name] = llm_int8.quantize(weight)
        seen = {name: _Seen() for name in weights}

        def look(name: str, x: Tensor) -> None:
            with block.blaming(name):
                target = x @ weights[name].T
                got = llm_int8.linear(x, integers[name], threshold=self.threshold)
                seen[name].add(x, target, got, self.threshold)

        if block.inputs:
            block.collect(weights, look)
        reports = []
        for name, quantized in integers.items():
            block.replace(name, quantized)
            reports.append(
                layer_report(
                    block.full_name(name),
                    self.name,
                    weights[name],
                    quantized,
                    **seen[name].figures(),
                )
            )
        return reports


class _Seen:
    """Loud columns and output error over the calibration batches."""

    def __init__(self) -> None:
        self.tokens = 0
        self.loud: set[int] = set()
        self.columns = 0
        self.noise = self.power = 0.0

    def add(self, x: Tensor, target: Tensor, got: Tensor, threshold: float) -> None:
        self.tokens += len(x)
        self.columns = x.shape[1]
        self.loud.update(llm_int8.outlier_columns(x, threshold).tolist())
        self.noise += float((target - got).to(torch.float64).square().sum())
        self.power += float(target.to(torch.float64).square().sum())

    def figures(self) -> dict:
        if not self.tokens:
            return {}
        return {
            "tokens": self.tokens,
            "loss": self.noise / self.power if self.power else 0.0,
            "note": f"{len(self.loud)} of {self.columns} columns reach the threshold",
        }
