"""What a training run leaves on disk to go on from: safetensors, whole or absent, no pickle.

Beside the parameters that means buffers: the ranges that observers have seen, and batch statistics.
Step and history travel in the file's own header, so they cannot disagree with the weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.optim import Optimizer

from labkit.core.errors import FormatError
from labkit.formats.writing import save_tensors

_FILE = "training.safetensors"

History = list[dict[str, float]]


def save_training(
    folder: Path, model: nn.Module, optimizers: list[Optimizer], step: int, history: History
) -> None:
    """Write beside, then rename: a kill at any moment leaves the previous one whole.

    Raises:
        StorageError: the disk is full, or the folder cannot be written to.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{index}.{number}.{key}"] = torch.as_tensor(value)
    save_tensors(folder / _FILE, tensors, {"step": str(step), "history": json.dumps(history)})


def load_training(
    folder: Path, model: nn.Module, optimizers: list[Optimizer]
) -> tuple[int, History]:
    """Restore model and optimizers in place: (steps done, history); (0, []) if there is nothing.

    Raises:
        FormatError: a damaged file, or one of another model.
    """
    path = folder / _FILE
    if not path.exists():
        return 0, []
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, history = int(metadata["step"]), json.loads(metadata["history"])
        prefix = "model."
        model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise FormatError(
            f"no checkpoint of this run: {error}",
            where=str(path),
            remedy="Remove the folder and train from the start.",
        ) from error
    for index, optimizer in enumerate(optimizers):
        _restore(optimizer, f"optimizer.{index}.", tensors)
    return step, history


def _restore(optimizer: Optimizer, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            number, key = name.removeprefix(prefix).split(".")
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names and bytes of everything that a model holds."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()
