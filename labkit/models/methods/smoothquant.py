"""SmoothQuant, block by block: balance each norm and its linears, then round the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from labkit.core.scheme import QuantScheme
from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.models.smooth import ChannelMaxima, norm_folds, smooth_fold
from labkit.quantize import rtn
from labkit.quantize.smoothquant import A8_TENSOR, ALPHA, W8


@dataclass(frozen=True)
class SmoothQuant(Settings):
    """`labkit.quantize.smoothquant` on every norm of a block, and int8 weights.

    The activations are quantized when the model runs (`labkit.models.activations`).

    Args:
        alpha: how much of a channel's loudness goes to the weights, 0 to 1; None searches the
            best one for each norm, on W8A8 outputs with `activation`.
        scheme: of the weights; symmetric, per tensor or channel.
        activation: what the search quantizes the inputs with.
    """

    alpha: float | None = ALPHA
    scheme: QuantScheme = W8
    activation: QuantScheme = A8_TENSOR

    name: ClassVar[str] = "smoothquant"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "original"
    needs_inputs: ClassVar[bool] = True

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Fold into the block's norms, then quantize every linear."""
        notes: dict[str, str] = {}
        folds = [
            fold
            for fold in norm_folds(block.family, block.module)
            if not block.kept.intersection(fold.linears)
        ]
        seen = {fold.linears[0]: ChannelMaxima() for fold in folds}
        if seen:
            block.collect(seen, lambda name, x: seen[name].add(x))
        for fold in folds:
            with block.blaming(fold.linears[0]):
                used = smooth_fold(
                    block.module,
                    fold,
                    block.family,
                    seen[fold.linears[0]],
                    self.alpha,
                    self.activation,
                    self.scheme,
                )
            notes |= dict.fromkeys(fold.linears, f"smoothed, alpha {used:g}")
        return [self._round(block, linear, notes) for linear in block.linears]

    def _round(self, block: Block, linear: str, notes: dict[str, str]) -> LayerReport:
        weight = block.weight(linear)
        with block.blaming(linear):
            quantized = rtn.quantize(weight, self.scheme, scale_dtype=torch.float32)
        block.replace(linear, quantized)
        note = notes.get(linear, "not smoothed: no norm in front of it")
        return layer_report(block.full_name(linear), self.name, weight, quantized, note=note)
