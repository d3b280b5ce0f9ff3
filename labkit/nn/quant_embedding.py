"""QuantEmbedding: a table of packed rows, of which only those that are asked for are decoded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.nn.packed.choose import Packable, form_of
from labkit.nn.packed.operators import look_up, packed_rows
from labkit.nn.packed.weight import PackedWeight


class QuantEmbedding(nn.Module):
    """Token numbers -> rows of a packed matrix [vocabulary, features].

    Args:
        weight: a `PackedWeight` (a tied head may share it), or whatever `form_of` takes.
        dtype: of what comes out: float32, float16 or bfloat16; a `PackedWeight` has its own.
        factor: what rows are multiplied by afterwards, in that dtype (Gemma 3).

    Indices are int32 or int64 [...], the result [..., features]. On a CPU a row that is not there,
    -1 for instance, raises ShapeError.
    """

    def __init__(
        self,
        weight: PackedWeight | Packable,
        dtype: torch.dtype = torch.float32,
        factor: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(weight, PackedWeight):
            weight = PackedWeight(form_of(weight), dtype)
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        self.factor = factor

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes out."""
        return self.weight.dtype

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the packed table, metadata counted."""
        return self.weight.nbytes

    def dequantize(self) -> Tensor:
        """Return the float32 table [vocabulary, features]."""
        return self.weight.dequantize()

    def forward(self, index: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            found = packed_rows(index, self.weight.parts(), self.weight.recipe, self.dtype)
        else:
            found = look_up(self.weight.form, index, self.dtype)
        return found if self.factor is None else found * torch.tensor(self.factor).to(found)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings} x {self.embedding_dim}, {self.dtype}"
