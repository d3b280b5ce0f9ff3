"""Checkpoints of a training run: safetensors and JSON, whole or absent, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

_FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    step: int,
    history: list[dict[str, object]],
) -> None:
    """Write aside, then rename: a kill at any moment leaves the previous checkpoint whole.

    Step and history travel in the file's own header, so they cannot disagree with the weights.
    """
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{index}.{number}.{key}"] = torch.as_tensor(value)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{_FILE}.{os.getpid()}.part"
    metadata = {"step": str(step), "history": json.dumps(history)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, aside, metadata)
    os.replace(aside, folder / _FILE)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: list[Optimizer]
) -> tuple[int, list[dict[str, object]]]:
    """Restore model and optimizers in place; (0, []) when there is no checkpoint yet."""
    path = folder / _FILE
    if not path.exists():
        return 0, []
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{index}."):
                _, _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return int(metadata["step"]), json.loads(metadata["history"])
