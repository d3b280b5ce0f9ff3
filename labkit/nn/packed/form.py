"""Form: what every packed weight can do, however it stores its numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from labkit.kernels import checks
from labkit.kernels.cpu import tiled

Index = slice | Tensor
AT_A_TIME = 2**19  # weights that are packed: what that takes beside them stays small


class Form(ABC):
    """A weight [out, in] in packed bytes. Nothing of it is ever unpacked as a whole to multiply.

    A form is a value: `restored` makes it again from its `parts` and `settings`.
    """

    kind: ClassVar[str]
    # The widths of activations that it has a kernel for: 16 means "as they are".
    activations: ClassVar[tuple[int, ...]] = (16,)

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """[out, in]."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The type in a few words, such as "int4 sym group 128"."""

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """The tensors that hold the weight, by name; each contiguous, with one axis at least."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What else is needed, as JSON has it."""

    @classmethod
    @abstractmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> Self:
        """The form whose `parts` and `settings` these are."""

    @abstractmethod
    def rows(self, index: Index) -> Tensor:
        """Rows of the weight, float32 [n, in]: a slice, or int64 [n] row numbers."""

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        """x [..., in] @ weight.T + bias, [..., out] in x's dtype.

        Raises what the kernels raise for x or bias that do not fit.
        """
        return by_tiles(x, self, bias)

    def elsewhere(self) -> Form:
        """The same weight in the form that another device than this one's kernels can use."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts().values())

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next(iter(self.parts().values())).device

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return self.rows(slice(None))


def integer_label(bits: int, symmetric: bool, columns: int, groups: int) -> str:
    """The label of integers with ``groups`` scales a row, such as "int4 sym group 128"."""
    size = f"group {columns // groups}" if groups > 1 else "channel"
    return f"int{bits} {'sym' if symmetric else 'asym'} {size}"


def by_tiles(x: Tensor, form: Form, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias with a run of rows unpacked at a time, in float32.

    Args:
        x: float32, float16 or bfloat16 [..., in].
        bias: floating point [out].

    Raises:
        SchemeError: dtypes or devices that cannot be.
        ShapeError: x or bias that do not fit the weight.
    """
    rows, columns = form.shape
    where = f"{form.label} {rows} x {columns}"
    checks.require_activations(x, columns, form.device, where)
    checks.require_bias(bias, rows, form.device, where)
    flat = x.detach().reshape(-1, columns).to(torch.float32)
    if x.device.type == "cpu":
        y = tiled.linear(flat, rows, lambda first, last: form.rows(slice(first, last)))
    else:
        step = tiled.rows_of_a_tile(columns)
        tiles = (form.rows(slice(first, first + step)) for first in range(0, rows, step))
        y = torch.cat([flat @ tile.T for tile in tiles], dim=1)
    return checks.finish(y, x, rows, bias)
