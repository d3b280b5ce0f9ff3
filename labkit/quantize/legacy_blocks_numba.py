"""The encoders of `labkit.quantize.legacy_blocks`, compiled: the same bytes.

Without an importance weights are rounded in one pass (`legacy_rounding_numba`), with one there is a
search (`legacy_search_numba`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from labkit.quantize import legacy_rounding_numba as rounding
from labkit.quantize import legacy_search_numba as search
from labkit.quantize.gguf_checks_numba import checked, largest_magnitude
from labkit.quantize.gguf_threads import share
from labkit.quantize.gguf_types import BLOCK_TYPES, row_bytes
from labkit.quantize.legacy_blocks import SEARCH

IntoEncoder = Callable[[np.ndarray, np.ndarray | None, np.ndarray, int], float]


def _encoder(
    type_name: str,
    rounded: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
    searched: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None,
) -> IntoEncoder:
    """f(x float32 [rows, columns], importance or None, out uint8 [rows, row bytes], threads).

    It returns the largest magnitude of x, and leaves ``out`` unfinished where that is not finite.

    Args:
        rounded: takes blocks, float32 [n, 32], the same as int32, and where they go.
        searched: takes rows, importance, and where their blocks go; None: without a search.
    """
    kind = BLOCK_TYPES[type_name]

    def encode_into(
        x: np.ndarray, importance: np.ndarray | None, out: np.ndarray, threads: int
    ) -> float:
        blocks, table = x.reshape(-1, kind.weights), out.reshape(-1, kind.nbytes)
        in_row = x.shape[1] // kind.weights

        def convert(first: int, last: int) -> None:
            part = blocks[first:last]
            rounded(part, part.view(np.int32), table[first:last])

        def search_part(first: int, last: int) -> None:
            searched(x[first:last], importance, table[first * in_row : last * in_row])

        if importance is None or searched is None:
            return checked(convert, blocks, threads)
        largest = largest_magnitude(x, threads)
        if np.isfinite(largest):
            share(search_part, len(x), x.shape[1], threads)
        return largest

    return encode_into


def with_own_output(type_name: str, encode_into: IntoEncoder):
    """f(x, importance, threads) -> uint8 [rows, row bytes], from one that writes into an array."""

    def encode(x: np.ndarray, importance: np.ndarray | None, threads: int) -> np.ndarray:
        out = np.empty((len(x), row_bytes(type_name, x.shape[1])), np.uint8)
        encode_into(x, importance, out, threads)
        return out

    return encode


def _signed(levels: int, nibbles: int, fifths: int):
    return lambda x, importance, out: search.signed(x, importance, out, levels, nibbles, fifths)


def _affine(last: int, nibbles: int, fifths: int):
    spreads = np.array(SEARCH.spreads(last), np.float32)
    return lambda x, importance, out: search.affine(
        x, importance, spreads, out, last, nibbles, fifths
    )


# Where the codes' low bits and their fifth bits begin in a block: see gguf_types.
ENCODE_INTO = {
    "Q4_0": _encoder("Q4_0", rounding.q4_0, _signed(8, 2, 0)),
    "Q4_1": _encoder("Q4_1", rounding.q4_1, _affine(15, 4, 0)),
    "Q5_0": _encoder("Q5_0", rounding.q5_0, _signed(16, 6, 2)),
    "Q5_1": _encoder("Q5_1", rounding.q5_1, _affine(31, 8, 4)),
    "Q8_0": _encoder("Q8_0", rounding.q8_0, None),
}
ENCODE = {name: with_own_output(name, encode) for name, encode in ENCODE_INTO.items()}
