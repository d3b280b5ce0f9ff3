"""Finished blocks as files: any Quantized taken apart into tensors and JSON, and put together.

A Quantized is a dataclass of tensors, plain values and other dataclasses. The JSON names classes,
and only those of labkit itself that hold numbers are ever called: a file cannot name another.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.core.errors import FormatError, LabkitError
from labkit.core.quantized import Quantized
from labkit.formats.inputs import InputQuantization
from labkit.formats.reading import open_tensors
from labkit.formats.writing import save_tensors

_TRUSTED = ("labkit.core.", "labkit.formats.inputs")


@dataclass
class FinishedBlock:
    """What one block became.

    Args:
        layers: quantized weights, by name relative to the block.
        tensors: everything else of the block (float32), by its name in the block's state dict.
        inputs: how inputs of linears are quantized, by relative name.
        reports: the figures of its layers' reports.
    """

    layers: dict[str, Quantized]
    tensors: dict[str, Tensor]
    inputs: dict[str, InputQuantization] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)


def write_block(path: Path, block: FinishedBlock) -> None:
    """Write the block as one file that appears when it is whole.

    Raises StorageError when the disk is full; no half file is left.
    """
    tensors: dict[str, Tensor] = {}
    fields = dataclasses.fields(block)
    about = {f.name: _apart(getattr(block, f.name), f.name, tensors) for f in fields}
    # The description goes among the tensors: like them it is read when asked for, and has no limit.
    text = bytearray(json.dumps(about).encode())
    save_tensors(path, tensors | {"about": torch.frombuffer(text, dtype=torch.uint8)})


def read_block(path: Path) -> FinishedBlock:
    """Read what `write_block` wrote, exactly. Raises FormatError for anything else."""
    tensors = open_tensors(path)
    try:
        about = json.loads(bytes(tensors["about"].tolist()))
        if not isinstance(about, dict):
            raise ValueError(f"a {type(about).__name__}")
        return FinishedBlock(**{name: _together(node, tensors) for name, node in about.items()})
    except LabkitError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"it is not a finished block ({error})",
            where=str(path),
            remedy="Remove the work folder and start the run again.",
        ) from error


def _apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON that stands for `value`; its tensors go into `tensors` under `name`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_apart(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return {
            "dict": {key: _apart(item, f"{name}.{key}", tensors) for key, item in value.items()}
        }
    kind = type(value)
    if not dataclasses.is_dataclass(value) or not kind.__module__.startswith(_TRUSTED):
        raise TypeError(f"{kind.__module__}.{kind.__name__} cannot be stored (at {name})")
    parts = {
        f.name: _apart(getattr(value, f.name), f"{name}.{f.name}", tensors)
        for f in dataclasses.fields(value)
        if f.init
    }
    return {"class": f"{kind.__module__}:{kind.__name__}", "fields": parts}


def _together(node: Any, tensors: Any) -> Any:
    if not isinstance(node, dict):
        return node
    match node:
        case {"tensor": name}:
            return tensors[name]
        case {"dtype": name}:
            return getattr(torch, name)
        case {"size": sides}:
            return torch.Size(sides)
        case {"list": items}:
            return [_together(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_together(item, tensors) for item in items)
        case {"dict": items}:
            return {key: _together(item, tensors) for key, item in items.items()}
        case {"class": name, "fields": parts}:
            return _class(name)(**{key: _together(part, tensors) for key, part in parts.items()})
    raise ValueError(f"unknown node {str(node)[:80]}")


def _class(name: str) -> type:
    module, _, kind = name.partition(":")
    if not module.startswith(_TRUSTED):
        raise FormatError(f"class {name!r} is none that labkit stores", where="finished block")
    found = getattr(importlib.import_module(module), kind)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise FormatError(f"{name!r} is no dataclass", where="finished block")
    return found
