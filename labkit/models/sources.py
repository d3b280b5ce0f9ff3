"""Where the driver takes its blocks from: a model in memory, or a folder of safetensors shards."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from labkit.models.families import Family, family
from labkit.models.skeleton import Skeleton
from labkit.models.storage import FinishedBlock
from labkit.models.walking import decoder_blocks, weight_matrix


class Source(Protocol):
    """A model whose blocks are handed out one by one."""

    family: Family
    prefix: str  # of the blocks: "model.layers"
    blocks: list[nn.Module]  # their parameters may lie on "meta"
    model: nn.Module  # calls the blocks; all else may lie on "meta" too
    config: dict[str, Any]

    def open_outer(self) -> None:
        """Give what comes before the blocks its weights."""

    def close_outer(self) -> None:
        """Take them away again, where they can be read again."""

    def open_block(self, index: int) -> nn.Module:
        """The block with its weights, float32."""
        ...

    def close_block(self, index: int) -> None:
        """Take its weights away, where the work folder has them."""

    def restore(self, index: int, finished: FinishedBlock) -> None:
        """Let the block be what an earlier run made of it."""

    def fingerprint(self) -> str:
        """The same for the same model, whenever it is asked."""
        ...


class ModuleSource:
    """A copy of a model in memory, float32; at the end it is the quantized model.

    Raises ModelError for an architecture that labkit does not walk.
    """

    def __init__(self, model: nn.Module) -> None:
        self.family = family(model)
        self.dtype = next(model.parameters()).dtype
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.prefix, blocks = decoder_blocks(self.model)
        self.blocks = list(blocks)
        config = model.config
        self.config = json.loads(config.to_json_string())
        self.config["architectures"] = [type(model).__name__]

    def open_outer(self) -> None:
        """It is there."""

    def close_outer(self) -> None:
        """It stays."""

    def open_block(self, index: int) -> nn.Module:
        """The block of the copy."""
        return self.blocks[index]

    def close_block(self, index: int) -> None:
        """It stays: the copy is the result."""

    @torch.no_grad()
    def restore(self, index: int, finished: FinishedBlock) -> None:
        """Fill the copy's block with what an earlier run made of it."""
        block = self.blocks[index]
        state = block.state_dict()
        for name, tensor in finished.tensors.items():
            state[name].copy_(tensor)
        for name, quantized in finished.layers.items():
            weight_matrix(block.get_submodule(name)).copy_(quantized.dequantize())

    def fingerprint(self) -> str:
        """Of the config and every weight."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def finish(self, quantized: set[str]) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The model in the dtype it came in, and its tensors but those of `quantized` layers."""
        model = self.model.to(self.dtype)
        state, seen = {}, set()
        for name, tensor in model.state_dict().items():
            tied = (tensor.data_ptr(), tensor.shape) in seen and tensor.numel() > 0
            if tied or name.removesuffix(".weight") in quantized:
                continue
            seen.add((tensor.data_ptr(), tensor.shape))
            state[name] = tensor
        return model, state


class FolderSource:
    """A folder in Hugging Face layout: one block at a time is filled from its shards.

    Raises:
        ModelError: an architecture that labkit does not walk; config.json and tensors disagree.
        FormatError: no safetensors, a pickle, damaged or hostile files.
    """

    def __init__(self, folder: Path) -> None:
        self.skeleton = Skeleton(folder)
        self.family = self.skeleton.family
        self.model = self.skeleton.model
        self.prefix, blocks = decoder_blocks(self.model)
        self.blocks = list(blocks)
        self.config = self.skeleton.config

    def open_outer(self) -> None:
        """Read embeddings and norms; the head is not needed."""
        self.skeleton.fill(self._outer_names())

    def close_outer(self) -> None:
        """Back to "meta"."""
        self.skeleton.empty(self._outer_names())

    def open_block(self, index: int) -> nn.Module:
        """Read the block's weights."""
        self.skeleton.fill(self._names_of(index))
        return self.blocks[index]

    def close_block(self, index: int) -> None:
        """Back to "meta"."""
        self.skeleton.empty(self._names_of(index))

    def restore(self, index: int, finished: FinishedBlock) -> None:
        """Nothing to do: what is finished lies in the work folder."""

    def fingerprint(self) -> str:
        """Of config.json and the headers of all shards."""
        return self.skeleton.fingerprint()

    def _names_of(self, index: int) -> list[str]:
        return [f"{self.prefix}.{index}.{name}" for name in self.blocks[index].state_dict()]

    def _outer_names(self) -> list[str]:
        head = self.model.get_output_embeddings()
        heads = {
            f"{name}.{own}" if name else own
            for name, module in self.model.named_modules()
            if module is head
            for own in module.state_dict()
        }
        names = (name for name in self.skeleton.places if not name.startswith(f"{self.prefix}."))
        return [name for name in names if name not in heads]


def open_source(source: nn.Module | FolderSource | Path | str) -> ModuleSource | FolderSource:
    """The source for a model in memory or a folder; an open one is handed back."""
    if isinstance(source, FolderSource):
        return source
    return ModuleSource(source) if isinstance(source, nn.Module) else FolderSource(Path(source))
