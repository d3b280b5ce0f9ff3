"""What a model feeds its decoder blocks, seen once, without running any block.

Everything that a model passes along with the hidden states (attention masks, position embeddings)
is made before its first block, so it can be had with blocks that do nothing. It may differ from
block to block (Gemma's sliding windows), so the call of every block is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError
from labkit.models.block import BlockCall
from labkit.models.hidden import Batch


@dataclass
class Captured:
    """The inputs of the first block, and how each block is called.

    Args:
        hidden: float32 [batch, length, hidden] for each batch, or where they lie: what enters the
            first block.
        extras: for each batch, for each block, the other arguments of its call. Equal ones are
            one object: with sequences of one length all batches share masks and positions.
    """

    hidden: list[Batch] = field(default_factory=list)
    extras: list[list[BlockCall]] = field(default_factory=list)

    def calls(self, index: int, hidden: list[Batch]) -> list[BlockCall]:
        """The calls of block `index` when `hidden` enters it, batch by batch."""
        return [
            BlockCall(states, extras[index].args, extras[index].kwargs)
            for states, extras in zip(hidden, self.extras, strict=True)
        ]


class _AllSeenError(Exception):
    """Ends the forward pass at the last block: norm and head are not needed."""


class _TuplesWantedError(Exception):
    """Up to transformers 4.53 a block returned a tuple, and the model takes the first of it."""


@torch.no_grad()
def capture(
    model: nn.Module,
    blocks: list[nn.Module],
    token_ids: Tensor,
    batch_size: int,
    keep: Callable[[Iterator[Tensor]], list[Batch]] = list,
) -> Captured:
    """Run `token_ids` (int64 [sequences, length]) up to the blocks, `batch_size` at a time.

    The blocks need no weights; what comes before them does. What enters the first block goes
    through `keep`, batch by batch as it is computed.

    Raises ModelError when the model does not call its blocks in turn with hidden states.
    """
    captured = Captured()
    recorder = _Recorder(len(blocks))
    with _standing_in(blocks, recorder):
        captured.hidden = keep(_entering(model, token_ids.split(batch_size), recorder, captured))
    return captured


def _entering(
    model: nn.Module, batches: Sequence[Tensor], recorder: _Recorder, captured: Captured
) -> Iterator[Tensor]:
    """What enters the first block; how the blocks are called goes into `captured` on the way."""
    for batch in batches:
        try:
            _forward(model, batch, recorder)
        except _TuplesWantedError:
            recorder.tuples = True
            _forward(model, batch, recorder)
        calls, recorder.calls = recorder.calls, []
        previous = captured.extras[-1] if captured.extras else []
        captured.extras.append(_shared(calls, previous))
        yield calls.pop(0).hidden


def _forward(model: nn.Module, batch: Tensor, recorder: _Recorder) -> None:
    recorder.calls = []
    try:
        model(input_ids=batch, use_cache=False)
    except _AllSeenError:
        return
    raise ModelError(
        f"{len(recorder.calls)} of {recorder.blocks} blocks were called",
        where=type(model).__name__,
        remedy="labkit walks decoders that call their blocks one after another.",
    )


class _Recorder:
    """Stands in for every block: records the call, and hands the hidden states through."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.tuples = False
        self.calls: list[BlockCall] = []

    def see(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        hidden, args, kwargs = _split(args, kwargs)
        if self.calls and hidden.ndim < self.calls[0].hidden.ndim:
            raise _TuplesWantedError  # the model took "the first of the tuple" from our tensor
        # Blocks that do nothing hand on what entered the first: a copy each would hold it as often
        # as the model has blocks.
        states = torch.empty(0) if self.calls else hidden.detach().clone()
        self.calls.append(BlockCall(states, args, kwargs))
        if len(self.calls) == self.blocks:
            raise _AllSeenError
        return (hidden,) if self.tuples else hidden


def _split(args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


@contextmanager
def _standing_in(blocks: list[nn.Module], recorder: _Recorder) -> Iterator[None]:
    # The instance's own `forward` hides that of its class; all its attributes stay readable.
    for block in blocks:
        block.forward = recorder.see
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _shared(calls: list[BlockCall], previous: list[BlockCall]) -> list[BlockCall]:
    """The calls without their hidden states; what equals the previous batch's is that object."""
    empty = torch.empty(0)
    kept: list[BlockCall] = []
    for index, call in enumerate(calls):
        known = [*previous[index : index + 1], *kept[-1:]]
        same = next(
            (k for k in known if _equal((k.args, k.kwargs), (call.args, call.kwargs))), None
        )
        kept.append(same or BlockCall(empty, call.args, call.kwargs))
    return kept


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return isinstance(one, (bool, int, float, str)) and one == other
