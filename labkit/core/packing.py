"""Packing: codes of 1 to 8 bits as one dense, little-endian bit stream.

Code i takes the bits i*b .. i*b+b-1 of the stream, low bit first; bit k of the stream is bit k % 8
of byte k // 8. Nothing is left empty between codes, so a 3-bit code may lie across two bytes:

    bits 3, codes a b c d …        byte 0   c1c0 b2b1b0 a2a1a0      (written high bit first)
                                   byte 1   f0 e2e1e0 d2d1d0 c2

Read as little-endian int32 words this is the layout of GPTQ's qweight columns.
"""

from __future__ import annotations

import torch

from labkit.core.errors import PackingError

_PER_WORD = 8  # eight codes of b bits fill b bytes exactly, whatever b is


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` bits take, the last byte padded."""
    return (count * bits + 7) // 8


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return integer ``codes`` (any shape, row-major) as uint8 [ceil(count * bits / 8)].

    Unused high bits of the last byte are 0.

    Raises:
        PackingError: bits not 1..8, codes that are not integers, or one outside 0 .. 2^bits-1.
    """
    _require_bits(bits)
    if codes.is_floating_point() or codes.is_complex():
        raise PackingError(f"codes are {codes.dtype}", remedy="Pack integers, not real numbers.")
    flat = codes.reshape(-1)
    _require_fit(flat, bits)
    count = flat.numel()
    words = -(-count // _PER_WORD)
    padded = torch.zeros(words * _PER_WORD, dtype=torch.uint8, device=codes.device)
    padded[:count] = flat
    lanes = padded.reshape(words, _PER_WORD)
    # One int64 holds the eight codes, the first in the lowest bits; then its low `bits` bytes are
    # the stream. With 8 bits the top code reaches the sign bit, which masking makes harmless.
    word = torch.zeros(words, dtype=torch.int64, device=codes.device)
    for lane in range(_PER_WORD):
        word |= lanes[:, lane].to(torch.int64) << (bits * lane)
    stream = torch.empty(words, bits, dtype=torch.uint8, device=codes.device)
    for byte in range(bits):
        stream[:, byte] = ((word >> (8 * byte)) & 0xFF).to(torch.uint8)
    return stream.reshape(-1)[: packed_size(count, bits)].clone()


def unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first ``count`` codes of a stream as uint8 [count]: the inverse of `pack_bits`.

    Raises:
        PackingError: bits not 1..8, not a uint8 stream of exactly the bytes that ``count`` codes
            take, or padding bits that are not 0.
    """
    _require_bits(bits)
    expected = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != expected:
        raise PackingError(
            f"{packed.dtype} of shape {tuple(packed.shape)} for {count} codes of {bits} bits",
            remedy=f"Expected uint8 [{expected}].",
        )
    used = count * bits - 8 * (expected - 1)
    if expected and int(packed[-1]) >> used:
        raise PackingError(
            f"the last byte, {int(packed[-1])}, has bits set above its {used} used ones",
            remedy="The stream is damaged, or was packed with another width or count.",
        )
    words = -(-count // _PER_WORD)
    padded = torch.zeros(words * bits, dtype=torch.uint8, device=packed.device)
    padded[:expected] = packed
    stream = padded.reshape(words, bits)
    word = torch.zeros(words, dtype=torch.int64, device=packed.device)
    for byte in range(bits):
        word |= stream[:, byte].to(torch.int64) << (8 * byte)
    lanes = torch.empty(words, _PER_WORD, dtype=torch.uint8, device=packed.device)
    for lane in range(_PER_WORD):
        lanes[:, lane] = ((word >> (bits * lane)) & (2**bits - 1)).to(torch.uint8)
    return lanes.reshape(-1)[:count].clone()


def _require_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise PackingError(f"{bits!r} bits", remedy="Choose 1 to 8 bits.")


def _require_fit(flat: torch.Tensor, bits: int) -> None:
    if flat.numel() == 0:
        return
    wide = flat.to(torch.int64)
    outside = (wide < 0) | (wide >= 2**bits)
    if not bool(outside.any()):
        return
    first = int(torch.nonzero(outside)[0])
    raise PackingError(
        f"{int(outside.sum())} codes outside 0..{2**bits - 1}; the first, at flat position "
        f"{first}, is {int(wide[first])}",
        where=f"pack_bits, {bits} bits",
        remedy="Signed codes are packed plus 2^(bits-1); check that they were made for this width.",
    )
