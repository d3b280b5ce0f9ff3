"""Our Triton kernels beside the libraries', and beside the bandwidth of the card.

As `labkit.bench.kernel_rows` on a CPU: contestants take turns, on copies of their weights that the
card's cache does not hold; errors are those of each side's own weight in float64. Beside "copy
bandwidth" the ratio is the share of it at which our weight is read: 1 at most, or nearly so.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from labkit.bench import devices, gpu_peers, kernel_peers
from labkit.bench.products import BLOCK, GROUP, INT4, INT8, QUICK_INT8, SHAPES, exact, sizes
from labkit.bench.race import Contestant, race
from labkit.bench.rows import BenchRow, Effort, named
from labkit.core.errors import PeerMissingError
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.scheme import QuantScheme
from labkit.kernels import (
    Int4Weight,
    Int8Weight,
    codebook_linear,
    fp8_linear,
    int4_linear,
    int8_linear,
    quantize_tokens,
)
from labkit.quantize import nf4, rtn

QUICK_SHAPES = ((4096, 4096),)
TOKENS = (1, 2, 4, 8, 16)
BUFFER = {"cuda": 2**30, "cpu": 2**20}
DTYPE = torch.bfloat16

Rows = Iterator[BenchRow | PeerMissingError]


def rows(effort: Effort, device: str) -> Rows:
    """Yield the rows as they are measured; a peer that is not there in place of its row.

    Raises SchemeError where there is no such device.
    """
    bench = _Bench(devices.found(device), effort)
    torch.manual_seed(0)
    for shape in QUICK_SHAPES if effort.quick else SHAPES:
        weight = torch.randn(shape) * 0.02
        yield from bench.int4(weight)
        yield from bench.nf4(weight)
        yield from bench.fp8(weight)
    tokens, size = QUICK_INT8 if effort.quick else INT8
    yield from bench.int8(torch.randn(size, size), torch.randn(tokens, size))


class _Bench:
    """Rows on one device."""

    def __init__(self, device: torch.device, effort: Effort) -> None:
        self._device, self._effort = device, effort

    def int4(self, weight: Tensor) -> Rows:
        """W4A16 beside torch's product in 16 bits and torchao's; one token beside the bandwidth."""
        quantized = rtn.quantize(weight, INT4)
        packed = Int4Weight.from_quantized(quantized)
        dense = quantized.dequantize().to(self._device)
        copies, layers = self._copies(packed), []
        try:
            layers = gpu_peers.torchao_int4(dense.to(DTYPE), len(copies))
        except PeerMissingError as error:
            yield error
        for tokens in TOKENS:
            x = self._inputs(tokens, weight)
            calls = [lambda w=w, x=x: int4_linear(x, w, implementation="gpu") for w in copies]
            ours = Contestant("", calls, exact(x, dense))
            peers = [gpu_peers.matmul(dense, x, self._count(2 * weight.numel()))]
            if layers:
                theirs = [lambda m=m, x=x: m(x) for m in layers]
                peers.append(Contestant(named("torchao", "int4 weight-only"), theirs, None))
            what = f"W4A16 group {GROUP}, {sizes(weight, tokens)}"
            yield from self._race(what, ours, peers, packed.nbytes, tokens)

    def nf4(self, weight: Tensor) -> Rows:
        """NF4 beside bitsandbytes."""
        quantized = nf4.quantize(weight, block_size=BLOCK)
        x, copies = self._inputs(1, weight), self._copies(quantized)
        calls = [lambda w=w: codebook_linear(x, w, implementation="gpu") for w in copies]
        ours = Contestant("", calls, exact(x, quantized.dequantize().to(self._device)))
        theirs = weight.to(self._device, DTYPE)
        peers = [kernel_peers.bitsandbytes_nf4(theirs, x, len(copies), "gemv_4bit")]
        what = f"NF4 block {BLOCK}, {sizes(weight, 1)}"
        yield from self._race(what, ours, peers, quantized.nbytes)

    def fp8(self, weight: Tensor) -> Rows:
        """FP8 weights beside torch's product, where the card has one."""
        quantized = Float8Tensor.quantize(weight, "tensor")
        x, copies = self._inputs(1, weight), self._copies(quantized)
        calls = [lambda w=w: fp8_linear(x, w, implementation="gpu") for w in copies]
        ours = Contestant("", calls, exact(x, quantized.dequantize().to(self._device)))
        peers = []
        try:
            peers.append(gpu_peers.scaled_mm(copies[0], x, len(copies)))
        except PeerMissingError as error:
            yield error
        yield from self._race(f"FP8, {sizes(weight, 1)}", ours, peers, quantized.nbytes)

    def int8(self, weight: Tensor, x: Tensor) -> Rows:
        """W8A8 beside torch._int_mm."""
        quantized = rtn.quantize(weight, QuantScheme(8)).to(self._device)
        codes, scale = quantize_tokens(x.to(self._device), implementation="gpu")
        packed = Int8Weight.from_quantized(quantized)
        peer = kernel_peers.int_mm(codes, scale, quantized)
        call = lambda: int8_linear(codes, scale, packed, implementation="gpu")  # noqa: E731
        ours = Contestant("", [call], peer.exact)
        what = f"W8A8, {sizes(weight, len(x))}"
        yield from self._race(what, ours, [peer], packed.nbytes, len(x))

    def _race(
        self, what: str, ours: Contestant, peers: list[Contestant], nbytes: int, tokens: int = 1
    ) -> Iterator[BenchRow]:
        """With one token the bytes are what takes time: the copy stands beside it then."""
        if tokens == 1:
            copy = gpu_peers.copying(nbytes, self._device, BUFFER[self._device.type])
            peers = [*peers, copy]
        rounds, clock = self._effort.rounds, devices.clock(self._device)
        yield from race(what, ours, peers, nbytes, rounds, clock)

    def _inputs(self, tokens: int, weight: Tensor) -> Tensor:
        return torch.randn(tokens, weight.shape[1]).to(self._device, DTYPE)

    def _copies(self, weight) -> list:
        """The weight on the device as often as its cache does not hold it."""
        return [weight.to(self._device) for _ in range(self._count(weight.nbytes))]

    def _count(self, nbytes: int) -> int:
        return max(2, -(-devices.cache_bytes(self._device) // nbytes))
