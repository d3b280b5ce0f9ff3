"""Which layers mind being rounded? Each one alone, all others exact.

Swaps a layer's rounded double in, runs the model, and puts the layer back. What runs before that
layer gives the same states every time, so they are computed once: block by block, a model of n
blocks costs about half of what n whole runs would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError
from labkit.evaluate.classification import Damage, damage, labels_of, logits_of
from labkit.models.text_classifier import TextBatch
from labkit.models.walking import decoder_blocks


@dataclass(frozen=True)
class Sensitivity:
    """A layer rounded alone.

    Args:
        layer, choice: its name, and what it was rounded to.
        bytes: what its weight takes that way.
        damage: to the answers of the whole model.
    """

    layer: str
    choice: str
    bytes: int
    damage: Damage


@contextmanager
def swapped(model: nn.Module, name: str, layer: nn.Module) -> Iterator[None]:
    """The model with `layer` in the place `name`, until the block ends."""
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    before = parent.get_submodule(leaf)
    setattr(parent, leaf, layer)
    try:
        yield
    finally:
        setattr(parent, leaf, before)


def layer_sensitivity(
    model: nn.Module,
    batches: Sequence[TextBatch],
    doubles: Mapping[str, Mapping[str, tuple[nn.Module, int]]],
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Sensitivity]:
    """Every choice of every layer alone.

    Args:
        model: a classifier in evaluation mode. It is changed meanwhile and comes back as it was.
        batches: labelled texts. Not those on which the result is reported: layers are chosen here.
        doubles: layer -> choice -> (the layer to swap in, the bytes of its weight).

    Raises:
        ModelError: a name that the model has no layer for.
        CorpusError: no texts, or labels that are missing.
    """
    layers = dict(model.named_modules())
    unknown = [name for name in doubles if name not in layers]
    if unknown:
        raise ModelError(f"no layer {unknown[0]!r}", where=type(model).__name__)
    labels, exact = labels_of(batches), logits_of(model, batches)
    prefix, blocks = decoder_blocks(model)
    entering = _entering(model, batches, blocks)
    found = []
    for done, (name, choices) in enumerate(doubles.items()):
        # A layer outside of the blocks (the table) is in front of all of them.
        inside = name.startswith(f"{prefix}.")
        block = int(name[len(prefix) + 1 :].split(".")[0]) if inside else 0
        for choice, (double, size) in choices.items():
            with swapped(model, name, double), _from_block(blocks, block, entering, inside):
                rounded = logits_of(model, batches)
            found.append(Sensitivity(name, choice, size, damage(exact, rounded, labels)))
        if progress is not None:
            progress(name, done + 1, len(doubles))
    return found


@torch.no_grad()
def _entering(
    model: nn.Module, batches: Sequence[TextBatch], blocks: nn.ModuleList
) -> list[list[Tensor]]:
    """What enters each block: [block][batch], float32 [rows, length, hidden]."""
    seen: list[list[Tensor]] = [[] for _ in blocks]

    def keep(index: int):
        return lambda module, args: seen[index].append(args[0].detach())

    handles = [block.register_forward_pre_hook(keep(i)) for i, block in enumerate(blocks)]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _from_block(
    blocks: nn.ModuleList, first: int, entering: list[list[Tensor]], inside: bool
) -> Iterator[None]:
    """Let the blocks before `first` hand through; `first` gets what it gets when all is exact."""
    if not inside or first == 0:
        yield
        return
    states = iter(entering[first])
    for block in blocks[:first]:
        block.forward = lambda hidden, *rest, **more: hidden
    handle = blocks[first].register_forward_pre_hook(lambda _, args: (next(states), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
        for block in blocks[:first]:
            del block.forward
