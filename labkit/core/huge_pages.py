"""Memory for large weights in pages of 2 MB, where the system gives them.

A kernel that streams through a weight asks for a new page every 4 KB otherwise, and each has to be
found in the page table first. NumPy asks Linux for huge pages (MADV_HUGEPAGE) from 4 MB on, torch's
allocator does not.

It begins with a cache line, so that a register's 64 bytes are in one line and not in two.
"""

from __future__ import annotations

import math

import numpy as np
import torch

_LINE = 64  # bytes


def empty_bytes(*shape: int) -> torch.Tensor:
    """uint8 of this shape on the CPU, not initialised."""
    size = math.prod(shape)
    memory = np.empty(size + _LINE, np.uint8)
    first = -memory.ctypes.data % _LINE
    return torch.from_numpy(memory[first : first + size].reshape(shape))


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU, of the same dtype and shape."""
    source = tensor.detach().contiguous()
    bytes_ = empty_bytes(source.nbytes)
    bytes_.copy_(source.reshape(-1).view(torch.uint8))
    return bytes_.view(source.dtype).reshape(source.shape)
