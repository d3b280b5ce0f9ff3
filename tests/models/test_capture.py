"""Capture: what a model passes to its blocks, of old and new transformers."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny, tokens
from torch import nn

from labkit.core.errors import ModelError
from labkit.models.capture import capture
from labkit.models.walking import decoder_blocks


class Step(nn.Module):
    def forward(self, hidden_states, scale, mask=None):
        return (hidden_states * scale,)


class OldStyle(nn.Module):
    """Blocks that return tuples, called with positional arguments: transformers up to 4.53."""

    def __init__(self, count: int, calls: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(Step() for _ in range(count))
        self.calls = count if calls is None else calls

    def forward(self, input_ids, use_cache):
        hidden = self.embed(input_ids)
        for block in self.blocks[: self.calls]:
            hidden = block(hidden, 2.0, mask=torch.ones(input_ids.shape[1]))[0]
        return hidden


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_blocks_that_return_tuples(count: int, batch_size: int) -> None:
    model, ids = OldStyle(count), tokens(7, 5, 10)
    captured = capture(model, list(model.blocks), ids, batch_size)
    assert torch.equal(torch.cat(captured.hidden), model.embed(ids))
    assert [len(extras) for extras in captured.extras] == [count] * len(captured.hidden)
    call = captured.calls(count - 1, captured.hidden)[-1]
    assert call.args == (2.0,) and torch.equal(call.kwargs["mask"], torch.ones(5))
    # What is equal is kept once, however many batches and blocks there are.
    masks = {id(c.kwargs["mask"]) for extras in captured.extras for c in extras}
    assert len(masks) == 1


def test_blocks_are_themselves_again_afterwards() -> None:
    model = tiny("llama")
    blocks = list(decoder_blocks(model)[1])
    before = model(tokens()).logits
    capture(model, blocks, tokens(), 2)
    assert all("forward" not in vars(block) for block in blocks)
    assert torch.equal(model(tokens()).logits, before)


def test_a_model_that_does_not_call_all_blocks_is_refused() -> None:
    model = OldStyle(3, calls=2)
    with pytest.raises(ModelError, match="2 of 3 blocks were called"):
        capture(model, list(model.blocks), tokens(2, 5, 10), 2)
    assert all("forward" not in vars(block) for block in model.blocks)


class TwoKinds(nn.Module):
    """Every other block has a window of its own, as in Gemma."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(Step() for _ in range(4))

    def forward(self, input_ids, use_cache):
        hidden = self.embed(input_ids)
        length = input_ids.shape[1]
        masks = [torch.ones(length, length).tril(), torch.ones(length, length)]
        for index, block in enumerate(self.blocks):
            hidden = block(hidden_states=hidden, scale=1.0, mask=masks[index % 2])[0]
        return hidden


def test_layers_of_two_kinds_keep_their_own_masks() -> None:
    model = TwoKinds()
    captured = capture(model, list(model.blocks), tokens(4, 5, 10), 2)
    masks = [captured.calls(i, captured.hidden)[1].kwargs["mask"] for i in range(4)]
    assert torch.equal(masks[0], torch.ones(5, 5).tril()) and torch.equal(
        masks[1], torch.ones(5, 5)
    )
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])


def test_a_window_that_differs_by_layer_changes_what_enters_the_second_block() -> None:
    """The masks of tiny Gemma models cut something off; else tests with them would prove less."""
    windows, ids = tiny("gemma2"), tokens(2, 16)
    without = tiny("gemma2", sliding_window=64)
    assert torch.equal(windows.lm_head.weight, without.lm_head.weight)
    assert not torch.allclose(windows(ids).logits, without(ids).logits, atol=1e-4)


def test_what_enters_the_first_block_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for every block: a 70B has 80 of them."""
    copies: list[torch.Size] = []
    clone = torch.Tensor.clone

    def counted(tensor: torch.Tensor, **how: object) -> torch.Tensor:
        copies.append(tensor.shape)
        return clone(tensor, **how)

    monkeypatch.setattr(torch.Tensor, "clone", counted)
    model, ids = OldStyle(6), tokens(4, 5, 10)
    capture(model, list(model.blocks), ids, 2)
    # The first batch is read twice: only then is it known that this model takes tuples.
    assert copies == [torch.Size([2, 5, 4])] * 3
