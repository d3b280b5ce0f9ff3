"""QuantEmbedding: rows of the dequantized table."""

from __future__ import annotations

import pytest
import torch
from packed_cases import CASES, COLUMNS, ROWS, case

from labkit.core.errors import ShapeError
from labkit.nn.quant_embedding import QuantEmbedding
from labkit.nn.quant_linear import QuantLinear

INDEX = torch.tensor([[3, 0, 69], [3, 3, 64]])


@pytest.mark.parametrize("name", list(CASES))
def test_rows(name):
    weight, wanted = case(name)
    table = QuantEmbedding(weight)
    assert torch.equal(table(INDEX), wanted[INDEX])
    assert torch.equal(table(INDEX[0].int()), wanted[INDEX[0]])
    assert table(INDEX[:, :0]).shape == (2, 0, COLUMNS)
    assert torch.equal(table.dequantize(), wanted)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_is_not_there_is_named(row):
    table = QuantEmbedding(case("Q4_0")[0])
    for index in (torch.tensor([0, row, 2]), torch.tensor([[row]], dtype=torch.int32)):
        with pytest.raises(ShapeError, match=f"row {row}"):
            table(index)


def test_compiled_without_a_break():
    torch.compiler.reset()
    weight, wanted = case("Q4_0")
    compiled = torch.compile(QuantEmbedding(weight), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(INDEX), wanted[INDEX])


def test_dtype_factor_and_a_shared_weight():
    weight, wanted = case("Q4_K")
    table = QuantEmbedding(weight, torch.bfloat16, factor=11.3)
    assert torch.equal(table(INDEX), wanted[INDEX].bfloat16() * torch.tensor(11.3).bfloat16())
    assert table.float()(INDEX).dtype == torch.float32
    head = QuantLinear(table.weight)
    assert head.weight is table.weight and table.num_embeddings == ROWS
    assert table.weight_nbytes == head.weight_nbytes
