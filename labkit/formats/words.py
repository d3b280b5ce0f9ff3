"""Codes in int32 words: the dense bit stream of `labkit.core.packing`, 32 bits at a time.

Each row of a matrix begins a new word. Code i of a row takes the bits i*b .. i*b+b-1 of the row's
words, low bit first, so that 32 codes fill b words exactly, whatever b is.
"""

from __future__ import annotations

import torch

from labkit.core.errors import PackingError
from labkit.core.packing import pack_bits, unpack_bits


def words_a_row(count: int, bits: int) -> int:
    """The int32 words that ``count`` codes of ``bits`` bits take, the last word padded."""
    return -(-count * bits // 32)


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes [rows, count], each 0 .. 2^bits-1, as int32 [rows, ceil(count * bits / 32)].

    Unused high bits of a row's last word are 0.

    Raises:
        PackingError: a code that does not fit, or a width other than 1 to 8.
    """
    rows, count = codes.shape
    # 32 codes end on a word whatever the width: pad to that, cut the words that hold padding alone.
    padded = torch.zeros(rows, -(-count // 32) * 32, dtype=codes.dtype, device=codes.device)
    padded[:, :count] = codes
    words = pack_bits(padded, bits).view(torch.int32).reshape(rows, -1)
    return words[:, : words_a_row(count, bits)].contiguous()


def unpack_rows(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the codes of int32 ``words`` [rows, ...] as uint8 [rows, count]: `pack_rows` undone.

    Raises:
        PackingError: not int32, or not as many words as ``count`` codes take.
    """
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] != words_a_row(count, bits):
        raise PackingError(
            f"{words.dtype} of shape {tuple(words.shape)} for rows of {count} codes, {bits} bits",
            remedy=f"Expected int32 [rows, {words_a_row(count, bits)}].",
        )
    rows = words.shape[0]
    full = -(-count // 32) * 32
    padded = torch.zeros(rows, words_a_row(full, bits), dtype=torch.int32, device=words.device)
    padded[:, : words.shape[1]] = words
    stream = padded.view(torch.uint8).reshape(-1)
    return unpack_bits(stream, bits, rows * full).reshape(rows, full)[:, :count].contiguous()
