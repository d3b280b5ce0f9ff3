"""GPTQ, block by block: each group of linears sees what the quantized ones before it put out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from labkit.core.scheme import QuantScheme
from labkit.models.block import Block
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.quantize import gptq
from labkit.quantize.hessian import InputStats


@dataclass(frozen=True)
class Gptq(Settings):
    """`labkit.quantize.gptq` on every linear of a block.

    Args:
        scheme: the grid; granularity "channel" or "group".
        damp: part of the Hessian's mean diagonal that is added to it; increased when the Hessian
            cannot be factored, and then reported.
        act_order, static_groups, group_aware, block_size, scale_dtype, loop: as in `gptq.solve`.
        true_sequential: collect inputs anew after each group of linears (k, v, q; o; up, gate;
            down), as the paper's code does; otherwise once a block.
    """

    scheme: QuantScheme
    damp: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    group_aware: bool = False
    true_sequential: bool = True
    block_size: int = 128
    scale_dtype: torch.dtype = torch.float16
    loop: Literal["numba", "plain"] = "numba"

    name: ClassVar[str] = "gptq"
    next_inputs: ClassVar[Literal["quantized", "original"]] = "quantized"
    needs_inputs: ClassVar[bool] = True

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize the groups of linears in the order in which they run."""
        groups = block.groups()
        rounds = [[group] for group in groups] if self.true_sequential else [groups]
        return [
            self._quantize(block, linear, stats)
            for groups_of_round in rounds
            for group, stats in _collect(block, groups_of_round)
            for linear in group
        ]

    def _quantize(self, block: Block, linear: str, stats: InputStats) -> LayerReport:
        weight = block.weight(linear)
        with block.blaming(linear):
            solution = gptq.solve(
                weight,
                stats,
                self.scheme,
                damp=self.damp,
                block_size=self.block_size,
                act_order=self.act_order,
                static_groups=self.static_groups,
                group_aware=self.group_aware,
                scale_dtype=self.scale_dtype,
                loop=self.loop,
            )
        block.replace(linear, solution.quantized)
        notes = [solution.note] if solution.note else []
        if solution.dead_columns:
            notes.append(f"{solution.dead_columns} columns that no input reaches were set to 0")
        return layer_report(
            block.full_name(linear),
            self.name,
            weight,
            solution.quantized,
            damp=solution.damp,
            tokens=stats.tokens,
            loss=solution.loss,
            note="; ".join(notes),
        )


def _collect(block: Block, groups: list[list[str]]) -> list[tuple[list[str], InputStats]]:
    """Input statistics of each group; one of its linears stands for all, which read one tensor."""
    stats = {group[0]: InputStats(block.weight(group[0]).shape[1]) for group in groups}

    def add(name: str, inputs: Tensor) -> None:
        with block.blaming(name):
            stats[name].add(inputs)

    block.collect(stats, add)
    return [(group, stats[group[0]]) for group in groups]
