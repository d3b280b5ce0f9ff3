"""The weights of a model on its way to GGUF: read one by one from a folder, or held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from labkit.core.errors import ModelError
from labkit.models.skeleton import Skeleton


class Weights(Protocol):
    """Parameters by the names that transformers gives them; tied ones once."""

    where: str
    config: Mapping[str, Any]  # whole: what config.json leaves out is filled in

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All of them, without reading any."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """One of them, in the dtype that it is stored in."""
        ...


class FolderWeights:
    """A folder in Hugging Face layout; its shards are read tensor by tensor.

    Raises:
        ModelError: an architecture that labkit does not walk, a quantized model, or a config.json
            that disagrees with the tensors.
        FormatError: no safetensors, a pickle, damaged or hostile files.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._skeleton = Skeleton(folder)
        self.config = self._skeleton.model.config.to_dict()
        parameters = {name for name, _ in _parameters(self._skeleton.model)}
        self._places = {
            name: place for name, place in self._skeleton.places.items() if name in parameters
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """From the headers of the shards."""
        tensors = self._skeleton.tensors
        return {name: tensors.entry(place).shape for name, place in self._places.items()}

    def read(self, name: str) -> torch.Tensor:
        """From its shard."""
        return self._skeleton.tensors[self._places[name]]


class ModelWeights:
    """A model in memory."""

    def __init__(self, model: nn.Module) -> None:
        self.where = type(model).__name__
        self.config = model.config.to_dict()
        seen: set[int] = set()
        self._parameters: dict[str, torch.Tensor] = {}
        for name, parameter in _parameters(model):
            if parameter.data_ptr() not in seen or parameter.device.type == "meta":
                self._parameters[name] = parameter
            seen.add(parameter.data_ptr())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As they are."""
        return {name: tuple(tensor.shape) for name, tensor in self._parameters.items()}

    def read(self, name: str) -> torch.Tensor:
        """The parameter itself."""
        return self._parameters[name].detach().cpu()


def _parameters(model: nn.Module):
    return model.named_parameters(remove_duplicate=False)


def require_float(weights: Weights, name: str, tensor: torch.Tensor) -> None:
    """Return if the tensor holds weights. Raises ModelError for packed integers and the like."""
    if not tensor.is_floating_point():
        raise ModelError(
            f"{name} is {tensor.dtype}, no float weights",
            where=weights.where,
            remedy="Give the float model; GGUF's types are made from its weights.",
        )
