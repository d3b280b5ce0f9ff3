"""The roofline: how fast work can be done that needs so many operations and so many bytes.

    seconds = max(operations / peak, bytes / bandwidth)

Source: Williams, Waterman and Patterson 2009 (doi 10.1145/1498765.1498785). Bytes are those that
must come from memory at least once. An operation is a multiplication or an addition, so a product
of a [out, in] weight with one token takes 2 * out * in of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.model_shapes import ModelShape
from labkit.evaluate.shortest import shortest

PRODUCTS = ("float32", "bfloat16", "int8")
_PIECE = 2**24


@dataclass(frozen=True)
class Work:
    """What has to be done: operations, and bytes that cross the border of the memory."""

    operations: float
    nbytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.nbytes

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.nbytes + other.nbytes)


@dataclass(frozen=True)
class Roof:
    """What a machine can do: bytes a second, and operations a second of one kind of number."""

    bandwidth: float
    peak: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which on the arithmetic, not the memory, sets the pace."""
        return self.peak / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """Operations a second at so many operations per byte."""
        return min(self.peak, self.bandwidth * intensity)

    def seconds(self, work: Work) -> float:
        """The least time that the work can take."""
        return max(work.operations / self.peak, work.nbytes / self.bandwidth)

    def bound_by(self, work: Work) -> str:
        """ "memory" or "arithmetic"."""
        return "memory" if work.intensity < self.ridge else "arithmetic"


def linear_work(
    rows: int,
    columns: int,
    tokens: int,
    weight_bits: float = 16,
    activation_bytes: float = 2,
) -> Work:
    """x [tokens, columns] @ weight [rows, columns].T: weight and x read once, y written once.

    Args:
        weight_bits: bits a weight, scales and zero-points counted: 4.125 for 4-bit codes with a
            float16 scale for 128 of them.
        activation_bytes: bytes of a number of x or y.

    Raises:
        ShapeError: a size below 1.
    """
    _require_positive(rows=rows, columns=columns, tokens=tokens)
    weights = rows * columns
    moved = weights * weight_bits / 8 + tokens * (rows + columns) * activation_bytes
    return Work(2.0 * weights * tokens, moved)


def prefill_work(
    shape: ModelShape, tokens: int, weight_bits: float = 16, cache_bytes: float = 2
) -> Work:
    """Reading a prompt of so many tokens, in one pass; logits of the last token only.

    Counted: the products with all weights, the scores and sums of attention, and as bytes the
    weights and the cache. What passes from layer to layer stays in the processor's caches.

    Raises:
        ShapeError: a size below 1.
    """
    _require_positive(tokens=tokens)
    return _pass(shape, 1, tokens, 0, weight_bits, cache_bytes)


def decode_work(
    shape: ModelShape,
    context: int,
    batch: int = 1,
    weight_bits: float = 16,
    cache_bytes: float = 2,
) -> Work:
    """One new token for each of ``batch`` sequences that have ``context`` tokens already.

    Raises:
        ShapeError: a size below 1.
    """
    _require_positive(context=context, batch=batch)
    return _pass(shape, batch, 1, context, weight_bits, cache_bytes)


def _pass(
    shape: ModelShape, batch: int, new: int, past: int, weight_bits: float, cache_bytes: float
) -> Work:
    head = shape.vocab * shape.hidden
    products = 2.0 * batch * (shape.linear_parameters * new + head)
    # Token i of the new ones sees past + i others and itself; a score and a weighted sum of each.
    seen = new * past + new * (new + 1) / 2
    attention = 4.0 * batch * shape.layers * shape.heads * shape.head_dim * seen
    of_a_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * cache_bytes
    moved = (shape.linear_parameters + head) * weight_bits / 8 + batch * (past + new) * of_a_token
    return Work(products + attention, moved)


def crossing_tokens(roof: Roof, bits: float, wide_bits: float, unpack_seconds: float) -> float:
    """From how many tokens on a weight of ``bits`` is no faster than one of ``wide_bits``.

    Per weight and pass: the wide one takes max(its bytes / bandwidth, 2 tokens / peak), the narrow
    one max(its bytes / bandwidth, ``unpack_seconds`` + 2 tokens / peak), as its codes must become
    numbers first. Both run in the same arithmetic.

    Returns:
        Tokens, not rounded; 0 if the narrow one is never faster, infinity if nothing is lost by
        unpacking (the two end up equally fast, and the narrow one never slower).

    Raises:
        SchemeError: ``bits`` not below ``wide_bits``, or a negative time.
    """
    if not 0 < bits < wide_bits or unpack_seconds < 0:
        raise SchemeError(
            f"{bits} bits beside {wide_bits}, {unpack_seconds} s to unpack a weight",
            "crossing_tokens",
            "Expected fewer bits than the wide weight has, and a time from 0 on.",
        )
    if unpack_seconds == 0:
        return float("inf")
    return max(0.0, (wide_bits / 8 / roof.bandwidth - unpack_seconds) * roof.peak / 2)


def measure_roof(kind: str = "float32", *, seconds: float = 0.5) -> Roof:
    """This machine's CPU, with torch's number of threads: `read_bandwidth` and `product_rate`."""
    return Roof(read_bandwidth(seconds=seconds), product_rate(kind, seconds=seconds))


def read_bandwidth(nbytes: int = 2**28, *, seconds: float = 0.5) -> float:
    """Bytes a second that a vectorised read on torch's number of threads gets from memory.

    They are read in pieces of 16 MiB, each timed by itself: short enough that some piece is read
    without a pause even where other processes want the cores, too.

    Args:
        nbytes: how many are read in turns, at least 512. Several times the last cache, or it is the
            cache that is measured.
        seconds: how long to go on. The best reading counts: whatever else the machine does can
            only take bandwidth away.

    Raises:
        ShapeError: less than 512 bytes.
    """
    import numpy as np

    from labkit.kernels.cpu.read import STEP, read  # Numba: a second to import

    if nbytes < STEP:
        raise ShapeError(f"{nbytes} bytes", "read_bandwidth", f"Expected {STEP} or more.")
    pieces = max(1, nbytes // _PIECE)
    tables = np.ones((pieces, nbytes // pieces // STEP * STEP), np.uint8)
    return tables[0].nbytes / shortest([lambda t=t: read(t) for t in tables], seconds=seconds)


def product_rate(kind: str = "float32", size: int | None = None, *, seconds: float = 0.5) -> float:
    """Operations a second of a product of two matrices [size, size], the best in ``seconds``.

    Args:
        kind: "float32" or "bfloat16": torch's product. "int8": `labkit.kernels.int8_linear`.
        size: None: 512, or 1024 for more than four threads of torch: work for all of them, and yet
            short enough to be done without a pause where other processes want the cores, too.

    Raises:
        SchemeError: another kind.
        ShapeError: a size below 1.
    """
    if size is None:
        size = 512 if torch.get_num_threads() <= 4 else 1024
    _require_positive(size=size)
    if kind not in PRODUCTS:
        raise SchemeError(f"kind {kind!r}", "product_rate", f"There are {', '.join(PRODUCTS)}.")
    return 2.0 * size**3 / shortest([_product(kind, size)], seconds=seconds)


def _product(kind: str, size: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    if kind != "int8":
        a, b = (part.to(getattr(torch, kind)) for part in (a, b))
        return lambda: a @ b
    from labkit.core.scheme import QuantScheme
    from labkit.kernels import Int8Weight, int8_linear, quantize_tokens
    from labkit.quantize import rtn

    weight = Int8Weight.from_quantized(rtn.quantize(b, QuantScheme(8)))
    codes, scale = quantize_tokens(a)
    return lambda: int8_linear(codes, scale, weight)


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"{name} is {size}", "roofline", "Expected 1 or more.")
