"""The grids that GPTQ rounds to: which scale a column uses, and when that scale is chosen.

The scales of a whole row (or tensor) are chosen once, before anything moves. Scales of groups are
chosen when the group's first column is reached, from weights that carry the errors of all columns
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
        scale: [out, groups], the dtype that is stored; one group for channel and tensor.
        zero_point: int32 [out, groups].
        group: int64 [in], the group of the i-th column in the order of rounding.
    """

    scheme: QuantScheme
    scale: torch.Tensor
    zero_point: torch.Tensor
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
        device = weight.device
        return cls(
            scheme,
            torch.ones(rows, groups, dtype=scale_dtype, device=device),
            torch.zeros(rows, groups, dtype=torch.int32, device=device),
            torch.arange(columns, device=device) // size,
        )

    def fit(self, piece: torch.Tensor, group: int) -> None:
        """Choose scale and zero-point of ``group`` from ``piece`` ([out, columns], float32)."""
        lo, hi = torch.aminmax(piece, dim=1)
        if self.scheme.granularity == "tensor":
            lo, hi = lo.amin().expand_as(lo), hi.amax().expand_as(hi)
        self.scale[:, group], self.zero_point[:, group] = choose_qparams(
            lo,
            hi,
            self.scheme.bits,
            self.scheme.symmetric,
            narrow_range=self.scheme.narrow_range,
            scale_dtype=self.scale.dtype,
        )

    def fit_groups(self, weight: torch.Tensor, start: int, stop: int) -> None:
        """Choose the scales of all groups whose first column is in [start, stop).

        ``weight`` ([out, in]) is in the order of rounding.
        """
        size = self.scheme.group_size or weight.shape[1]
        first = -(-start // size) * size
        for column in range(first, stop, size):
            self.fit(weight[:, column : column + size], int(self.group[column]))

    def stored(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scale and zero_point in the shape of scales, as QuantizedTensor keeps them."""
        one = self.scheme.granularity == "tensor"
        scale = self.scale[:1] if one else self.scale
        zeros = self.zero_point[:1] if one else self.zero_point
        return scale, None if self.scheme.symmetric else zeros
