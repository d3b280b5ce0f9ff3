"""One decoder block in memory, with the inputs that calibration sends through it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.errors import LabkitError, ModelError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.quantized import Quantized
from labkit.formats.inputs import InputQuantization
from labkit.models.families import Family, Fold
from labkit.models.hidden import Batch, StoredBatch
from labkit.models.walking import weight_matrix


@dataclass(frozen=True)
class BlockCall:
    """One call of a block: a batch of hidden states, and all else that the model passes along.

    Args:
        states: float32 [batch, length, hidden], or where they lie.
        args: further positional arguments.
        kwargs: attention mask, position embeddings and the like.
    """

    states: Batch
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> Tensor:
        """The hidden states, read anew if they lie in a file: the caller alone holds them then."""
        return self.states.read() if isinstance(self.states, StoredBatch) else self.states


class _EnoughError(Exception):
    """Ends a forward pass when all that was wanted from it has been seen."""


class Block:
    """A decoder block that a method works on.

    Args:
        name: its full name, such as "model.layers.3".
        index: its place among the blocks.
        module: the block, float32, in evaluation mode. A method changes its weights in place.
        family: what labkit knows of the architecture.
        inputs: the calls that calibration makes, batch by batch; empty for methods without.
        kept: relative names of linears that stay in floating point.
        on_replace: called with the layer's full name after each `replace`.
    """

    def __init__(
        self,
        name: str,
        index: int,
        module: nn.Module,
        family: Family,
        inputs: list[BlockCall],
        *,
        kept: Collection[str] = (),
        on_replace: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.index = index
        self.module = module
        self.family = family
        self.inputs = inputs
        self.kept = frozenset(kept)
        #: What `replace` was given, by relative name.
        self.quantized: dict[str, Quantized] = {}
        #: How inputs of linears are quantized (W8A8), by relative name; empty for weights alone.
        self.input_quantization: dict[str, InputQuantization] = {}
        self._on_replace = on_replace
        order = [linear for group in family.groups(module) for linear in group]
        #: Relative name -> module (nn.Linear or Conv1D), in the order in which they run.
        self.linears: dict[str, nn.Module] = {
            linear: module.get_submodule(linear) for linear in order if linear not in self.kept
        }

    def groups(self) -> list[list[str]]:
        """The linears to quantize, in true-sequential order; those of a group read one tensor."""
        groups = self.family.groups(self.module)
        left = [[name for name in group if name not in self.kept] for group in groups]
        return [group for group in left if group]

    def folds(self) -> list[Fold]:
        """The folds that this block allows."""
        return self.family.folds(self.module)

    def skipped_folds(self) -> list[str]:
        """The folds that it does not allow, each with the reason."""
        return self.family.skipped_folds(self.module)

    def full_name(self, linear: str) -> str:
        """The layer's name in the whole model."""
        return f"{self.name}.{linear}"

    @contextmanager
    def blaming(self, linear: str) -> Iterator[None]:
        """Name the layer in any LabkitError raised inside: methods work on bare matrices."""
        try:
            yield
        except LabkitError as error:
            error.add_note(f"in layer {self.full_name(linear)}")
            raise

    def weight(self, linear: str) -> Tensor:
        """A copy of the linear's weight as it stands: float32 [out, in] (Conv1D turned)."""
        return weight_matrix(self._linear(linear)).detach().float().clone().contiguous()

    @torch.no_grad()
    def write(self, linear: str, weight: Tensor) -> None:
        """Set the linear's weight to `weight` [out, in].

        Raises ShapeError when it does not fit, NonFiniteError for NaN or infinity.
        """
        target = weight_matrix(self._linear(linear))
        where = self.full_name(linear)
        if target.shape != weight.shape:
            raise ShapeError(
                f"a weight of shape {tuple(weight.shape)} for {tuple(target.shape)}", where=where
            )
        require_finite(weight, where)
        target.copy_(weight)

    def replace(self, linear: str, quantized: Quantized) -> None:
        """Let the linear compute with the dequantized weight, and keep `quantized` for the result.

        Raises ShapeError and NonFiniteError as `write` does.
        """
        self.write(linear, quantized.dequantize())
        self.quantized[linear] = quantized
        if self._on_replace is not None:
            self._on_replace(self.full_name(linear))

    @torch.no_grad()  # not inference_mode: a method may differentiate through what it gets
    def run(self) -> Iterator[Tensor]:
        """Outputs with the weights as they stand: float32 [batch, length, hidden] a batch."""
        for call in self.inputs:
            yield self._forward(call)

    @torch.no_grad()
    def run_last(self) -> Iterator[Tensor]:
        """As `run`, and each batch of inputs is let go when its outputs are there.

        All hidden states are then in memory once, not twice. Nothing can be run afterwards.
        """
        while self.inputs:
            yield self._forward(self.inputs.pop(0))

    @torch.no_grad()
    def collect(self, names: Iterable[str], visit: Callable[[str, Tensor], None]) -> None:
        """Call `visit(name, x)` with what flows into each named module, batch by batch.

        x: float32 [tokens, in], of the weights as they stand. Nothing is kept: a visitor that
        sums up needs no more memory than one batch.
        """

        def see(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            visit(name, inputs.detach().flatten(0, -2).float())

        self._watch(names, see)

    def _linear(self, name: str) -> nn.Module:
        if name not in self.linears:
            raise ModelError(
                f"no linear {name!r} to quantize",
                where=self.name,
                remedy=f"Choose from {', '.join(self.linears)}.",
            )
        return self.linears[name]

    def _forward(self, call: BlockCall) -> Tensor:
        return first_output(self.module(call.hidden, *call.args, **call.kwargs))

    def _watch(self, names: Iterable[str], see: Callable[..., None]) -> None:
        """Send all inputs through the block; tell `see(name, args, kwargs)` of the named calls."""
        wanted = list(dict.fromkeys(names))
        left: set[str] = set()

        def hook(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
            see(name, args, kwargs)
            left.discard(name)
            if not left:
                raise _EnoughError  # what comes behind the last one need not be computed

        handles = [
            self.module.get_submodule(name).register_forward_pre_hook(
                partial(hook, name), with_kwargs=True
            )
            for name in wanted
        ]
        try:
            for call in self.inputs:
                left.update(wanted)
                try:
                    self._forward(call)
                except _EnoughError:
                    continue
                raise ModelError(
                    f"{', '.join(sorted(left))} took no part in the block's forward pass",
                    where=self.name,
                )
        finally:
            for handle in handles:
                handle.remove()


def first_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states among what a block or attention returns: alone, or first of a tuple."""
    return output[0] if isinstance(output, tuple) else output
