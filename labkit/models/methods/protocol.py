"""What the block-by-block driver asks of a method."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Protocol

import torch

from labkit.models.block import Block
from labkit.models.report import LayerReport


class BlockMethod(Protocol):
    """A method is a frozen dataclass: its fields are its settings.

    `next_inputs` says what the next block is calibrated on: the outputs of this block after it was
    "quantized" (GPTQ: later blocks can make up for earlier errors) or those of the "original" one
    (AWQ). `needs_inputs` is False for methods that look at weights alone; they run without
    calibration text.
    """

    name: ClassVar[str]
    next_inputs: ClassVar[Literal["quantized", "original"]]
    needs_inputs: ClassVar[bool]

    def quantize_block(self, block: Block) -> list[LayerReport]:
        """Quantize every linear of `block` (`block.replace`); one report for each."""
        ...

    def settings(self) -> dict[str, Any]:
        """The settings as JSON takes them; a resumed run must have the same."""
        ...


class Settings:
    """Gives a dataclass its `settings()`."""

    def settings(self) -> dict[str, Any]:
        """Name of the method, and every field, as JSON takes them."""
        name = getattr(self, "name", type(self).__name__)
        return {"method": name} | {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
