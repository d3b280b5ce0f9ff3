"""The importance of columns from calibration text: what llama.cpp calls an importance matrix.

An error in a weight's column costs as much as the inputs of that column are large, so each column
counts with the mean of x² over the tokens that it met. The model is walked block by block: one
block and the inputs that enter it are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from labkit.core.finite import require_finite
from labkit.data.calibration import check_vocabulary
from labkit.formats.gguf.imatrix import ImportanceMatrix
from labkit.formats.gguf.names import naming_of
from labkit.models.block import Block
from labkit.models.capture import capture
from labkit.models.hidden import HiddenStates
from labkit.models.sources import FolderSource, ModuleSource, open_source

Progress = Callable[[str, int, int], None]


@torch.no_grad()
def importance_matrix(
    source: nn.Module | FolderSource | Path | str,
    calibration: Tensor,
    *,
    batch_size: int = 8,
    datasets: Sequence[str] = (),
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """Sum the squares of what flows into every linear of every block, as llama-imatrix does.

    The embedding is a table and the head is left out, as there: the mixes keep both at more bits.

    Args:
        source: a model in memory (it is not changed), or a folder in Hugging Face layout, of which
            one block at a time is read.
        calibration: token ids, int64 [sequences, length].
        batch_size: sequences that go through a block at a time.
        datasets: where the text is from; it is written into the file.
        progress: called after each block with its name, the blocks done and their number.

    Raises:
        CalibrationError: no tokens, or ids beyond the vocabulary.
        ModelError: an architecture that labkit does not walk or llama.cpp does not run.
        NonFiniteError: inputs that are not finite; the block or the layer is named.
    """
    opened = open_source(source)
    naming = naming_of(opened.config.get("model_type"), type(opened.model).__name__)
    check_vocabulary(calibration, opened.model)
    sums: dict[str, np.ndarray] = {}
    with HiddenStates() as states:
        for done, (block, squares) in enumerate(
            _walked(opened, calibration, batch_size, states), start=1
        ):
            for linear, summed in squares.items():
                full = block.full_name(linear)
                require_finite(summed, f"inputs of {full}")
                sums[naming.to_gguf(f"{full}.weight")] = summed.float().cpu().numpy()
            if progress is not None:
                progress(block.name, done, len(opened.blocks))
    count = calibration.numel()
    sequences, length = calibration.shape
    return ImportanceMatrix(sums, dict.fromkeys(sums, count), tuple(datasets), sequences, length)


def _walked(
    source: ModuleSource | FolderSource, ids: Tensor, batch_size: int, states: HiddenStates
) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """Each block, and the sums of what flowed into its linears."""
    source.open_outer()
    captured = capture(source.model, source.blocks, ids, batch_size, partial(states.keep, 0))
    source.close_outer()
    hidden, captured.hidden = captured.hidden, []
    for index in range(len(source.blocks)):
        module, calls = source.open_block(index), captured.calls(index, hidden)
        hidden.clear()
        block = Block(f"{source.prefix}.{index}", index, module, source.family, calls)
        with _summing(block) as found:
            hidden = states.keep(index + 1, block.run_last())
        states.drop(index)
        source.close_block(index)
        yield block, found


@contextmanager
def _summing(block: Block) -> Iterator[dict[str, Tensor]]:
    """Inside, the inputs of the block's linears are squared and summed: float64 [columns] each."""
    found: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        squares = args[0].flatten(0, -2).double().square().sum(0)
        found[name] = found[name] + squares if name in found else squares

    handles = [
        module.register_forward_pre_hook(partial(see, name))
        for name, module in block.linears.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
