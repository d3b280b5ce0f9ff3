"""What the driver hands back: quantized layers, everything else, and the reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.quantized import Quantized
from labkit.formats.checkpoint import Checkpoint, Lazy
from labkit.formats.inputs import InputQuantization
from labkit.models.report import LayerReport
from labkit.models.resume import WorkFolder
from labkit.models.sources import FolderSource, ModuleSource
from labkit.models.storage import FinishedBlock


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model.

    Args:
        model: it computes in floating point with the dequantized weights; None when the source was
            a folder, which need not fit into memory (`labkit.models.quantized.model_from` makes
            one of `checkpoint()`).
        layers: the quantized weights [out, in] by module name; read from disk when the source was
            a folder.
        reports: one for each linear of the blocks.
        tensors: everything else by its name in the state dict, in the dtype of the source; read
            from disk when the source was a folder.
        config: config.json.
        files: tokenizer and generation settings, as the source folder has them.
        inputs: how inputs of layers are quantized, by module name; empty for weights alone.
    """

    model: nn.Module | None
    layers: Mapping[str, Quantized]
    reports: list[LayerReport]
    tensors: Mapping[str, Tensor]
    config: dict[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    inputs: Mapping[str, InputQuantization] = field(default_factory=dict)

    def checkpoint(self, files: Mapping[str, bytes] | None = None) -> Checkpoint:
        """What a format saves; `files` replaces tokenizer files that the source did not have."""
        chosen = self.files if files is None else files
        return Checkpoint(self.config, self.tensors, self.layers, chosen, self.inputs)


def result_of(
    source: ModuleSource | FolderSource,
    finished: list[FinishedBlock | None],
    folder: WorkFolder | None,
) -> QuantizedModel:
    """Put the finished blocks together."""
    if isinstance(source, FolderSource):
        assert folder is not None  # the driver asks for one
        return _from_disk(source, folder)
    layers: dict[str, Quantized] = {}
    inputs: dict[str, InputQuantization] = {}
    reports: list[LayerReport] = []
    for index, block in enumerate(finished):
        name = f"{source.prefix}.{index}"
        layers |= {f"{name}.{linear}": quantized for linear, quantized in block.layers.items()}
        inputs |= {f"{name}.{linear}": how for linear, how in block.inputs.items()}
        reports += [LayerReport(quantized=None, **figures) for figures in block.reports]
    reports = [replace(report, quantized=layers.get(report.name)) for report in reports]
    model, tensors = source.finish(set(layers))
    return QuantizedModel(model, layers, reports, tensors, source.config, {}, inputs)


def _from_disk(source: FolderSource, folder: WorkFolder) -> QuantizedModel:
    layers: dict[str, int] = {}
    tensors: dict[str, int | None] = {}
    inputs: dict[str, InputQuantization] = {}
    reports: list[LayerReport] = []
    for index in range(len(source.blocks)):
        block = folder.read(index)
        name = f"{source.prefix}.{index}"
        layers |= {f"{name}.{linear}": index for linear in block.layers}
        tensors |= {f"{name}.{own}": index for own in block.tensors}
        inputs |= {f"{name}.{linear}": how for linear, how in block.inputs.items()}
        reports += [LayerReport(quantized=None, **figures) for figures in block.reports]
    outer = (name for name in source.skeleton.places if not name.startswith(f"{source.prefix}."))
    tensors = dict.fromkeys(outer) | tensors
    reader = _Reader(source, folder)
    return QuantizedModel(
        None,
        Lazy(layers, lambda name: reader.layer(name, layers[name])),
        reports,
        Lazy(tensors, lambda name: reader.tensor(name, tensors[name])),
        source.config,
        source.skeleton.files,
        inputs,
    )


class _Reader:
    """Reads layers and tensors, and keeps the block that was read last."""

    def __init__(self, source: FolderSource, folder: WorkFolder) -> None:
        self._skeleton = source.skeleton
        self._prefix = source.prefix
        self._folder = folder
        self._index = -1
        self._block: FinishedBlock | None = None

    def layer(self, name: str, index: int) -> Quantized:
        return self._open(index).layers[name.removeprefix(f"{self._prefix}.{index}.")]

    def tensor(self, name: str, index: int | None) -> Tensor:
        place = self._skeleton.places.get(name)
        if index is None:
            return self._skeleton.tensors[place]
        tensor = self._open(index).tensors[name.removeprefix(f"{self._prefix}.{index}.")]
        stored = torch.float32 if place is None else self._skeleton.tensors.entry(place).dtype
        return tensor.to(stored) if tensor.is_floating_point() else tensor

    def _open(self, index: int) -> FinishedBlock:
        if self._block is None or index != self._index:
            self._block, self._index = self._folder.read(index), index
        return self._block
