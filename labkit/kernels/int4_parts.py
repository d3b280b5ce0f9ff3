"""What 4-bit weights hold in any order of their codes: `Int4Weight` and `Int4Panels` are such."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.errors import GroupSizeError, ShapeError
from labkit.kernels import checks

_DTYPES = {
    "codes": (torch.uint8,),
    "scale": (torch.float16, torch.float32),
    "zero_point": (torch.uint8,),
    "columns": (torch.int32,),
}


@dataclass(frozen=True, eq=False)
class Int4Parts:
    """Codes in slots, a scale and perhaps a zero-point for each group of a row.

    Args:
        codes: uint8, two codes in a byte.
        scale: float16 or float32; its second axis has the groups.
        zero_point: uint8 in the shape of scale, 0..15; None: 8 everywhere.
        columns: int32 [slots], the column of each slot; -1 where a group was filled up.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    columns: Tensor

    def parts(self) -> dict[str, Tensor]:
        """The tensors by name, a zero-point only where there is one."""
        named = {name: getattr(self, name) for name in _DTYPES}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts().values())

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.scale.shape[1]

    @property
    def group_slots(self) -> int:
        """Slots that share a scale."""
        return len(self.columns) // self.groups

    def require_fitting(
        self, device: torch.device, axes: tuple[str, ...], chunk: int, in_features: int
    ) -> None:
        """Return if all but codes fits: their shape is a matter of the order that they are in.

        Args:
            device: where all parts must be.
            axes: what the axes of scale are.
            chunk: slots that are stored together.
            in_features: columns of the matrix.

        Raises:
            SchemeError: another dtype or device.
            ShapeError: parts that do not fit each other, or columns that are not there.
            GroupSizeError: groups that are no whole number of chunks.
        """
        where = type(self).__name__
        for name, part in self.parts().items():
            checks.require_dtype(name, part, _DTYPES[name], where)
            checks.require_device(name, part, device, where)
        if self.scale.ndim != len(axes) or self.columns.ndim != 1:
            raise ShapeError(
                f"scale has shape {tuple(self.scale.shape)}, columns {tuple(self.columns.shape)}",
                where,
                f"Expected [{', '.join(axes)}] and [slots].",
            )
        groups, slots = self.groups, len(self.columns)
        if groups == 0 or slots == 0 or slots % (groups * chunk):
            raise GroupSizeError(f"{slots} slots for {groups} groups in chunks of {chunk}", where)
        if self.zero_point is not None:
            checks.require_shape("zero_point", self.zero_point, tuple(self.scale.shape), where)
        if int(self.columns.min()) < -1 or int(self.columns.max()) >= in_features:
            raise ShapeError(f"columns outside -1..{in_features - 1}", where)

    def require_contiguous(self) -> None:
        """Return if every part is; else raise SchemeError."""
        for name, part in self.parts().items():
            checks.require_contiguous(name, part, type(self).__name__)
