"""Memory that asks for huge pages holds what any other holds."""

from __future__ import annotations

import pytest
import torch

from labkit.core.huge_pages import copied, empty_bytes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float8_e4m3fn, torch.int64])
def test_a_copy_is_the_same_in_other_memory(dtype):
    given = torch.arange(60).reshape(5, 12).to(dtype)[:, ::2]
    found = copied(given)
    assert found.dtype == dtype and found.shape == given.shape and found.is_contiguous()
    assert torch.equal(found.view(torch.uint8), given.contiguous().view(torch.uint8))
    assert found.data_ptr() != given.data_ptr()


def test_empty_bytes_has_its_shape():
    assert empty_bytes(3, 0, 2).shape == (3, 0, 2) and empty_bytes(4).dtype == torch.uint8


@pytest.mark.parametrize("size", [1, 1000, 5 * 2**20])
def test_empty_bytes_begins_with_a_cache_line(size):
    memory = empty_bytes(size, 3)
    assert memory.data_ptr() % 64 == 0 and memory.is_contiguous()
    memory.fill_(7)
    assert int(memory.sum(dtype=torch.int64)) == 21 * size
