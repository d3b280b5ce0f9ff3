"""Our Triton kernels beside the libraries', and beside the bandwidth of the card.

As `labkit.bench.kernel_rows` on a CPU: contestants take turns, on copies of their weights that the
card's cache does not hold; errors are those of each side's own weight in float64. Beside "copy
bandwidth" the ratio is the share of it at which our weight is read: 1 at most, or nearly so.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from labkit.bench import devices, gpu_peers
from labkit.bench.kernel_peers import GROUP, named
from labkit.bench.race import Contestant, race
from labkit.bench.rows import BenchRow, Effort
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

SHAPES, QUICK_SHAPES = ((4096, 4096), (11008, 4096)), ((4096, 4096),)
TOKENS = (1, 2, 4, 8, 16)
INT8, QUICK_INT8 = (512, 4096), (64, 1024)  # tokens, and both sides of the weight
BUFFER = {"cuda": 2**30, "cpu": 2**20}
DTYPE = torch.bfloat16

Rows = Iterator[BenchRow | PeerMissingError]


def rows(effort: Effort, device: str) -> Rows:
    """Yield the rows as they are measured; a peer that is not there in place of its row.

    Raises SchemeError where there is no such device.
    """
    place = devices.found(device)
    torch.manual_seed(0)
    for shape in QUICK_SHAPES if effort.quick else SHAPES:
        weight = torch.randn(shape) * 0.02
        bench = _Bench(place, effort, f"{shape[0]} x {shape[1]}")
        yield from bench.int4(weight)
        yield from bench.nf4(weight)
        yield from bench.fp8(weight)
    tokens, size = QUICK_INT8 if effort.quick else INT8
    bench = _Bench(place, effort, f"{size} x {size}, {tokens} tokens")
    yield from bench.int8(torch.randn(size, size), torch.randn(tokens, size))


class _Bench:
    """Rows of one shape on one device."""

    def __init__(self, device: torch.device, effort: Effort, shape: str) -> None:
        self._device, self._effort, self._shape = device, effort, shape

    def int4(self, weight: Tensor) -> Rows:
        """W4A16 beside torch's product in 16 bits and torchao's; one token beside the bandwidth."""
        scheme = QuantScheme(4, True, "group", GROUP, narrow_range=False)
        quantized = rtn.quantize(weight, scheme)
        packed = Int4Weight.from_quantized(quantized)
        dense = quantized.dequantize().to(self._device)
        copies, layers = self._copies(packed), []
        try:
            layers = gpu_peers.torchao_int4(dense.to(DTYPE), len(copies))
        except PeerMissingError as error:
            yield error
        for tokens in TOKENS:
            x = self._inputs(tokens, weight)
            exact = x.double() @ dense.double().T
            calls = [lambda w=w, x=x: int4_linear(x, w, implementation="gpu") for w in copies]
            peers = [gpu_peers.matmul(dense, x, self._count(2 * weight.numel()))]
            if layers:
                theirs = [lambda m=m, x=x: m(x) for m in layers]
                peers.append(Contestant(named("torchao", "int4 weight-only"), theirs, None))
            words = f"{tokens} token{'s' * (tokens > 1)}"
            what = f"W4A16 group {GROUP}, {self._shape}, {words}"
            yield from self._race(what, Contestant("", calls, exact), peers, packed.nbytes, tokens)

    def nf4(self, weight: Tensor) -> Rows:
        """NF4 beside bitsandbytes."""
        quantized = nf4.quantize(weight, block_size=64)
        x, copies = self._inputs(1, weight), self._copies(quantized)
        exact = x.double() @ quantized.dequantize().to(self._device).double().T
        calls = [lambda w=w: codebook_linear(x, w, implementation="gpu") for w in copies]
        peers = [gpu_peers.bitsandbytes_nf4(weight.to(self._device, DTYPE), x, len(copies))]
        what = f"NF4 block 64, {self._shape}, 1 token"
        yield from self._race(what, Contestant("", calls, exact), peers, quantized.nbytes)

    def fp8(self, weight: Tensor) -> Rows:
        """FP8 weights beside torch's product, where the card has one."""
        quantized = Float8Tensor.quantize(weight, "tensor")
        x, copies = self._inputs(1, weight), self._copies(quantized)
        exact = x.double() @ quantized.dequantize().to(self._device).double().T
        calls = [lambda w=w: fp8_linear(x, w, implementation="gpu") for w in copies]
        peers = []
        try:
            peers.append(gpu_peers.scaled_mm(copies[0], x, len(copies)))
        except PeerMissingError as error:
            yield error
        what = f"FP8, {self._shape}, 1 token"
        yield from self._race(what, Contestant("", calls, exact), peers, quantized.nbytes)

    def int8(self, weight: Tensor, x: Tensor) -> Rows:
        """W8A8 beside torch._int_mm."""
        quantized = rtn.quantize(weight, QuantScheme(8)).to(self._device)
        codes, scale = quantize_tokens(x.to(self._device), implementation="gpu")
        packed = Int8Weight.from_quantized(quantized)
        peer = gpu_peers.int_mm(codes, scale, quantized.codes, quantized.scale)
        call = lambda: int8_linear(codes, scale, packed, implementation="gpu")  # noqa: E731
        ours = Contestant("", [call], peer.exact)
        yield from self._race(f"W8A8, {self._shape}", ours, [peer], packed.nbytes, len(x))

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
