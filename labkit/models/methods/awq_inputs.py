"""What AWQ needs to see of a block: statistics of every linear's input, and calls of some modules.

All of it is taken in one pass over the calibration inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError
from labkit.models.block import Block, first_output
from labkit.quantize.hessian import InputStats


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module inside the block, as it was seen: call it with the same again."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Sample:
    """Calls of a module and what the original weights made of them, batch by batch."""

    module: nn.Module
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    tokens: int = 0

    def add(self, call: ModuleCall, output: Tensor) -> None:
        """Keep one call and its output [sequences, length, features]."""
        self.calls.append(call)
        self.outputs.append(output.detach())
        self.tokens += output.shape[:-1].numel()

    def first(self, tokens: int) -> Iterator[tuple[ModuleCall, Tensor]]:
        """Calls and outputs of the first sequences, as many as hold `tokens` tokens."""
        for call, output in zip(self.calls, self.outputs, strict=True):
            if tokens <= 0:
                return
            length = output[0].shape[:-1].numel()
            wanted = min(-(-tokens // length), len(output))
            yield _first_sequences(call, wanted, len(output)), output[:wanted]
            tokens -= wanted * length

    @torch.no_grad()
    def loss(self, tokens: int) -> float:
        """Mean squared error of the outputs that the weights now give, on the first `tokens`."""
        total, count = 0.0, 0
        for call, output in self.first(tokens):
            now = first_output(self.module(*call.args, **call.kwargs))
            total += float((now - output).square_().sum())
            count += output.numel()
        return total / count


class BlockInputs:
    """Statistics and samples of one block, with its original weights.

    Args:
        block: with calibration inputs.
        sample_tokens: how many tokens are kept of the modules that a loss is measured on.

    Raises CalibrationError for a block without inputs, NonFiniteError naming the layer.
    """

    def __init__(self, block: Block, sample_tokens: int) -> None:
        if not block.inputs:
            raise CalibrationError(
                "no calibration inputs",
                where=block.name,
                remedy="AWQ looks at activations: pass calibration tokens.",
            )
        self._block = block
        self._stands_for = {name: group[0] for group in block.groups() for name in group}
        self._stats = {
            name: InputStats(block.weight(name).shape[1]) for name in set(self._stands_for.values())
        }
        inspected = {fold.inspect for fold in block.folds() if fold.inspect not in block.linears}
        self._samples = {name: Sample(_module(block, name)) for name in inspected}
        self._sample_tokens = sample_tokens
        self._watch()

    @property
    def tokens(self) -> int:
        """Calibration tokens that went through the block."""
        return next(iter(self._stats.values())).tokens

    def stats(self, linear: str) -> InputStats:
        """Statistics of what flows into the linear."""
        return self._stats[self._stands_for[linear]]

    def grams(self) -> dict[str, Tensor]:
        """(1/N) Σ x xᵀ for every linear; linears that read one tensor share it."""
        made = {name: stats.hessian() / 2 for name, stats in self._stats.items()}
        return {name: made[group] for name, group in self._stands_for.items()}

    def sample(self, module: str) -> Sample:
        """Calls of a module ("" is the block) that is not a linear."""
        return self._samples[module]

    @torch.no_grad()
    def _watch(self) -> None:
        hooks = [
            _module(self._block, name).register_forward_hook(partial(see, name), with_kwargs=True)
            for names, see in ((self._stats, self._see_input), (self._samples, self._see_call))
            for name in names
        ]
        try:
            for call in self._block.inputs:
                self._block.module(call.hidden, *call.args, **call.kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _see_input(self, name: str, module: nn.Module, args: tuple, *_: Any) -> None:
        with self._block.blaming(name):
            self._stats[name].add(args[0])

    def _see_call(
        self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> None:
        if self._samples[name].tokens < self._sample_tokens:
            self._samples[name].add(ModuleCall(args, kwargs), first_output(output))


def _module(block: Block, name: str) -> nn.Module:
    return block.module.get_submodule(name) if name else block.module


def _first_sequences(call: ModuleCall, count: int, batch: int) -> ModuleCall:
    """The call with the first `count` of its `batch` sequences."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch:
            return value[:count]
        return tuple(map(cut, value)) if isinstance(value, tuple) else value

    if count == batch:
        return call
    return ModuleCall(
        tuple(map(cut, call.args)), {name: cut(value) for name, value in call.kwargs.items()}
    )
