"""The grids that GPTQ rounds to: which scale a column uses, and when that scale is chosen.

The scale of a whole row (or tensor) is chosen once, before anything moves. The scale of a group is
chosen when the group's first column is reached, from weights that carry the errors of the blocks
before; or, with static groups, once and for all from the weights as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.core.affine import choose_qparams
from labkit.core.granularity import scale_shape
from labkit.core.scheme import QuantScheme


@dataclass
class Grid:
    """Scales and zero-points of one weight [out, in], chosen piece by piece.

    Args:
        scheme: bits, symmetry, granularity.
        scale_dtype: what scales are rounded to, and stored as.
        scale: float32 [out, groups]; one group for channel and tensor.
        zero: float32 [out, groups], whole numbers.
        group: int64 [in], the group of the i-th column in the order of rounding.
    """

    scheme: QuantScheme
    scale_dtype: torch.dtype
    scale: torch.Tensor
    zero: torch.Tensor
    group: torch.Tensor

    @classmethod
    def empty(cls, weight: torch.Tensor, scheme: QuantScheme, scale_dtype: torch.dtype) -> Grid:
        """Return a grid without scales for ``weight`` ([out, in]), whose columns keep their order.

        Raises:
            GroupSizeError: the group size does not divide in.
        """
        rows, columns = weight.shape
        groups = scale_shape(weight.shape, scheme)[-1]
        size = scheme.group_size or columns
        scale = torch.ones(rows, groups, device=weight.device)
        group = torch.arange(columns, device=weight.device) // size
        return cls(scheme, scale_dtype, scale, torch.zeros_like(scale), group)

    def fit(self, piece: torch.Tensor, group: int) -> None:
        """Choose scale and zero-point of ``group`` from ``piece`` ([out, columns], float32)."""
        lo, hi = torch.aminmax(piece, dim=1)
        if self.scheme.granularity == "tensor":
            lo, hi = lo.amin().expand_as(lo), hi.amax().expand_as(hi)
        scale, zero = choose_qparams(
            lo,
            hi,
            self.scheme.bits,
            self.scheme.symmetric,
            narrow_range=self.scheme.narrow_range,
            scale_dtype=self.scale_dtype,
        )
        self.scale[:, group], self.zero[:, group] = scale, zero

    def fit_groups(self, start: int, stop: int, piece: torch.Tensor) -> None:
        """Choose the scales of all groups whose first column is in [start, stop).

        ``piece`` ([out, reach - start], float32) holds the columns from ``start`` on.
        """
        for column in self._starts(start, stop):
            columns = slice(column - start, column - start + self._size)
            self.fit(piece[:, columns], int(self.group[column]))

    def reach(self, start: int, stop: int) -> int:
        """Return the end of the last group that starts in [start, stop), at least ``stop``."""
        return max([stop, *(column + self._size for column in self._starts(start, stop))])

    @property
    def _size(self) -> int:
        return self.scheme.group_size or self.group.numel()

    def _starts(self, start: int, stop: int) -> range:
        return range(-(-start // self._size) * self._size, stop, self._size)

    def stored(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scale and zero_point in the shape of scales, as QuantizedTensor keeps them."""
        rows = 1 if self.scheme.granularity == "tensor" else None
        scale = self.scale[:rows].to(self.scale_dtype)
        return scale, None if self.scheme.symmetric else self.zero[:rows].to(torch.int32)
