"""GGUF blocks, byte for byte as the file has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.kernels import checks, gguf_linear
from labkit.nn.packed.form import Form, Index
from labkit.quantize import gguf
from labkit.quantize.gguf_types import block_type


@dataclass(frozen=True, eq=False)
class GgufForm(Form):
    """Blocks uint8 [out, bytes of a row] of one type ("Q4_K").

    Raises:
        SchemeError: an unknown type, or blocks that are not uint8.
        ShapeError: rows that end within a block.
    """

    blocks: Tensor
    type_name: str
    kind = "gguf"

    def __post_init__(self) -> None:
        nbytes = block_type(self.type_name).nbytes
        checks.require_blocks(self.blocks, nbytes, f"GGUF {self.type_name}")

    @property
    def shape(self) -> torch.Size:
        kind = block_type(self.type_name)
        return torch.Size((len(self.blocks), self.blocks.shape[1] // kind.nbytes * kind.weights))

    @property
    def label(self) -> str:
        return self.type_name

    def parts(self) -> dict[str, Tensor]:
        return {"blocks": self.blocks}

    def settings(self) -> dict[str, object]:
        return {"type_name": self.type_name}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> GgufForm:
        return cls(parts["blocks"], settings["type_name"])

    def linear(self, x: Tensor, bias: Tensor | None, activation_bits: int) -> Tensor:
        return gguf_linear(x, self.blocks, self.type_name, bias)

    def rows(self, index: Index) -> Tensor:
        blocks = self.blocks[index].cpu().numpy()
        threads = torch.get_num_threads()
        values = gguf.dequantize(blocks, self.type_name, threads=threads)
        return torch.from_numpy(values).to(self.device)
