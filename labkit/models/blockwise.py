"""The driver: walk a model block by block, quantize each, keep one in memory.

Inputs are captured once, in front of the first block. Then, for each block: read its weights, let
the method quantize its linears, send the inputs through it, drop it. Its outputs are the inputs of
the next; of all of them one batch is in memory, the others lie in files (`labkit.models.hidden`).
With a work folder every finished block lies on the disk, and a run that was killed goes on behind
the last one, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from torch import Tensor, nn

from labkit.core.errors import ModelError
from labkit.core.finite import require_finite
from labkit.models.block import Block, BlockCall
from labkit.models.capture import Captured, capture
from labkit.models.hidden import Batch, HiddenStates, drop_all
from labkit.models.methods.protocol import BlockMethod
from labkit.models.report import LayerReport
from labkit.models.request import asked_for, checked_ids, kept_linears
from labkit.models.result import QuantizedModel, result_of
from labkit.models.resume import WorkFolder
from labkit.models.sources import FolderSource, ModuleSource, open_source
from labkit.models.storage import FinishedBlock

Progress = Callable[[str, int, int], None]
Keep = Callable[[Iterator[Tensor]], list[Batch]]


def quantize_blockwise(
    source: nn.Module | FolderSource | Path | str,
    method: BlockMethod,
    calibration: Tensor | None = None,
    *,
    work: Path | str | None = None,
    batch_size: int = 8,
    keep: Sequence[str] = (),
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantize every linear of every decoder block; embedding, norms and head stay as they are.

    Args:
        source: a model in memory (it is not changed), or a folder in Hugging Face layout, of which
            one block at a time is read.
        method: one of `labkit.models.methods`.
        calibration: token ids, int64 [sequences, length]; None for methods without calibration.
        work: folder for what is finished; needed for a folder. The same call again goes on where
            an earlier one ended, however it ended, with the same result.
        batch_size: sequences that go through a block at a time.
        keep: names of layers that stay in floating point; "*" stands for anything.
        progress: called after each layer with its name, the layers done and their number.

    Raises:
        CalibrationError: no calibration for a method that needs it, or ids beyond the vocabulary.
        ModelError: an architecture that labkit does not walk, or a folder that contradicts itself.
        FormatError, StorageError: files that cannot be read, or written.
        ResumeError: the work folder belongs to a run with other settings, or to one at work.
        NonFiniteError, GroupSizeError, ...: what the method raises, with the layer's name.
    """
    opened = open_source(source)
    if work is None and isinstance(opened, FolderSource):
        raise ModelError(
            "a folder is quantized into a work folder, and none was given",
            where=str(opened.skeleton.folder),
            remedy="Pass work=, a folder on a disk with room for the result.",
        )
    ids = checked_ids(opened, method, calibration)
    walk = _Walk(opened, method, keep, progress)
    if work is None:
        with HiddenStates() as states:
            return walk.run(ids, batch_size, states, None)
    folder = WorkFolder(Path(work), asked_for(opened, method, ids, batch_size, keep))
    with folder.claimed():
        return walk.run(ids, batch_size, folder.states, folder)


class _Walk:
    """One run over all blocks."""

    def __init__(
        self,
        source: ModuleSource | FolderSource,
        method: BlockMethod,
        keep: Sequence[str],
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.method = method
        self.progress = progress
        self.done = 0
        linears = [
            [name for group in source.family.groups(block) for name in group]
            for block in source.blocks
        ]
        self.kept = kept_linears(source.prefix, linears, keep)
        self.total = sum(map(len, linears)) - sum(map(len, self.kept))
        self.linears = [
            [name for name in names if name not in kept]
            for names, kept in zip(linears, self.kept, strict=True)
        ]

    def run(
        self, ids: Tensor | None, batch_size: int, states: HiddenStates, folder: WorkFolder | None
    ) -> QuantizedModel:
        first = 0 if folder is None else folder.finished()
        finished = [self._restore(index, folder) for index in range(first)]
        captured, hidden = None, []
        if ids is not None and first < len(self.source.blocks):
            captured = self._capture(
                ids, batch_size, drop_all if first else partial(states.keep, 0)
            )
            hidden, captured.hidden = captured.hidden, []
            if first:
                hidden = states.read(first, len(captured.extras), ids.device)
        for index in range(first, len(self.source.blocks)):
            block, hidden = self._quantize(index, captured, hidden, states)
            if folder is not None:
                folder.write(index, block)
            states.drop(index)
            self.source.close_block(index)
            # With a folder the block is read again when it is wanted.
            finished.append(None if isinstance(self.source, FolderSource) else block)
            del block
        return result_of(self.source, finished, folder)

    def _restore(self, index: int, folder: WorkFolder) -> FinishedBlock | None:
        self.done += len(self.linears[index])
        if self.progress is not None:
            self.progress(f"{self.source.prefix}.{index}", self.done, self.total)
        if isinstance(self.source, FolderSource):
            return None
        block = folder.read(index)
        self.source.restore(index, block)
        return block

    def _capture(self, ids: Tensor, batch_size: int, keep: Keep) -> Captured:
        self.source.open_outer()
        captured = capture(
            self.source.model,
            self.source.blocks,
            ids,
            batch_size,
            lambda batches: keep(_finite(batches, "embeddings of")),
        )
        self.source.close_outer()
        return captured

    def _quantize(
        self, index: int, captured: Captured | None, hidden: list[Batch], states: HiddenStates
    ) -> tuple[FinishedBlock, list[Batch]]:
        """The finished block, and what enters the next one."""
        module = self.source.open_block(index)
        calls: list[BlockCall] = [] if captured is None else captured.calls(index, hidden)
        wanted = bool(calls) and index + 1 < len(self.source.blocks)
        hidden.clear()  # the calls hold them, and let them go when they are not needed any more
        block = Block(
            f"{self.source.prefix}.{index}",
            index,
            module,
            self.source.family,
            calls,
            kept=self.kept[index],
            on_replace=self._tick,
        )

        def kept(outputs: Iterator[Tensor]) -> list[Batch]:
            return states.keep(index + 1, _finite(outputs, f"outputs of {block.name},"))

        original = self.method.next_inputs == "original"
        following = kept(block.run()) if wanted and original else []
        reports = self.method.quantize_block(block)
        if wanted and not original:
            following = kept(block.run_last())
        return _finished(block, reports), following

    def _tick(self, name: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(name, self.done, self.total)


def _finite(batches: Iterator[Tensor], what: str) -> Iterator[Tensor]:
    """The batches, each checked when it comes by."""

    def checked(number: int, batch: Tensor) -> Tensor:
        require_finite(batch, f"{what} calibration batch {number}")
        return batch

    return map(checked, count(), batches)


def _finished(block: Block, reports: list[LayerReport]) -> FinishedBlock:
    """What the block became; refuses a method that left a layer without a word."""
    said = {report.name for report in reports if report.quantized is not None or report.note}
    silent = [name for name in block.linears if block.full_name(name) not in said]
    if silent:
        raise ModelError(
            f"the method said nothing about {', '.join(silent)}",
            where=block.name,
            remedy="A block method reports every layer: quantized, or why not.",
        )
    kept = [
        LayerReport(block.full_name(name), "kept", None, float("inf"), note="kept as asked")
        for name in sorted(block.kept)
    ]
    codes = {f"{name}.weight" for name in block.quantized}
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in block.module.state_dict().items()
        if name not in codes
    }
    figures = [report.figures() for report in [*reports, *kept]]
    return FinishedBlock(block.quantized, tensors, block.input_quantization, figures)
