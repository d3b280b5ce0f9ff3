"""Our kernels beside the libraries', and beside the time that reading the same bytes takes.

All contestants of a row take turns in one process (`labkit.bench.race`); the time of a call is the
median over rounds and copies of the weight. The error is ‖ŷ - y‖ / ‖y‖ against the product with
each side's own weight as it is meant, in float64, so that it shows the kernel's arithmetic and not
the quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from labkit.bench import kernel_peers
from labkit.bench.kernel_peers import named
from labkit.bench.race import Contestant, race
from labkit.bench.rows import BenchRow, Effort
from labkit.core.errors import PeerMissingError
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.huge_pages import copied
from labkit.core.scheme import QuantScheme
from labkit.kernels import (
    CodebookPanels,
    GgufPanels,
    Int4Panels,
    Int4Weight,
    Int8Weight,
    codebook_linear,
    fp8_linear,
    gguf_linear,
    int4_linear,
    int8_linear,
    panel_linear,
    quantize_tokens,
)
from labkit.quantize import gguf, nf4, rtn

_CACHE = 2**26  # twice the last-level cache of the machines that we know
_SHAPES, _QUICK_SHAPES = ((4096, 4096), (11008, 4096)), ((1024, 4096),)


def rows(effort: Effort) -> Iterator[BenchRow | PeerMissingError]:
    """Yield the rows as they are measured; a peer that is not there in place of its row."""
    torch.manual_seed(0)
    for shape in _QUICK_SHAPES if effort.quick else _SHAPES:
        weight = torch.randn(shape) * 0.02
        for tokens in (1,) if effort.quick else (1, 4, 16):
            yield from _int4_rows(weight, tokens, effort)
        yield from _format_rows(weight, effort)
    yield from _int8_rows(effort)


def _copies(nbytes: int, effort: Effort) -> int:
    return 2 if effort.quick else max(2, -(-_CACHE // nbytes))


def _int4_rows(weight: Tensor, tokens: int, effort: Effort) -> Iterator[BenchRow]:
    scheme = QuantScheme(4, True, "group", kernel_peers.GROUP, narrow_range=False)
    quantized = rtn.quantize(weight, scheme)
    packed = Int4Panels.from_rows(Int4Weight.from_quantized(quantized))
    count = _copies(packed.nbytes, effort)
    copies = [replace(packed, codes=copied(packed.codes)) for _ in range(count)]
    x = torch.randn(tokens, weight.shape[1])
    low = x.to(torch.bfloat16)
    dense = quantized.dequantize().double().T
    exact, low_exact = x.double() @ dense, low.double() @ dense
    shape = f"group 128, {_shape(weight)}, {tokens} token{'s' * (tokens > 1)}"
    reading = Contestant("reading the bytes", kernel_peers.reading(packed.nbytes, count), None)
    waiting = [reading] if tokens == 1 else []  # with more tokens the bytes are not what takes time
    torch_low = kernel_peers.torch_int4(quantized, low, count)
    bfloat16 = Contestant(named("torch", "bfloat16"), torch_low, low_exact)

    ours = Contestant("", [lambda w=w: int4_linear(low, w) for w in copies], low_exact)
    what = f"W4A16 bfloat16 {shape}"
    yield from race(what, ours, [bfloat16, *waiting], packed.nbytes, effort.rounds)

    ours = Contestant("", [lambda w=w: int4_linear(x, w) for w in copies], exact)
    peers = [
        Contestant(named("torch", "float32"), kernel_peers.torch_int4(quantized, x, count), exact),
        _onnx("float32", quantized, x, count, effort.threads, 1, exact),
    ]
    what = f"W4A16 float32 {shape}"
    yield from race(what, ours, [*peers, *waiting], packed.nbytes, effort.rounds)

    eight = [lambda w=w: int4_linear(x, w, activation_bits=8) for w in copies]
    theirs = _onnx("int8 activations", quantized, x, count, effort.threads, 4, exact)
    ours, peers = Contestant("", eight, exact), [bfloat16, theirs, *waiting]
    yield from race(f"W4A8 {shape}", ours, peers, packed.nbytes, effort.rounds)


def _onnx(words, quantized, x, count, threads, level, exact) -> Contestant:
    calls = kernel_peers.onnx_int4(quantized, x, count, threads, level)
    return Contestant(named("onnxruntime", words), calls, exact)


def _format_rows(weight: Tensor, effort: Effort) -> Iterator[BenchRow | PeerMissingError]:
    """GGUF types beside llama.cpp, NF4 beside bitsandbytes, FP8 alone with the bytes; one token."""
    x = torch.randn(1, weight.shape[1])
    for type_name in ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
        yield from _gguf_rows(type_name, weight, x, effort)
    yield from _nf4_rows(weight, x, effort)
    fp8 = Float8Tensor.quantize(weight)
    count = _copies(fp8.nbytes, effort)
    copies = [Float8Tensor(copied(fp8.codes), fp8.scale) for _ in range(count)]
    exact = x.double() @ fp8.dequantize().double().T
    ours = Contestant("", [lambda w=w: fp8_linear(x, w) for w in copies], exact)
    peers = [Contestant("reading the bytes", kernel_peers.reading(fp8.nbytes, count), None)]
    yield from race(f"FP8, {_shape(weight)}, 1 token", ours, peers, fp8.nbytes, effort.rounds)


def _gguf_rows(
    type_name: str, weight: Tensor, x: Tensor, effort: Effort
) -> Iterator[BenchRow | PeerMissingError]:
    """Panels and 8-bit activations beside llama.cpp, which does alike; then blocks, x as it is."""
    blocks = gguf.quantize(weight, type_name)
    count = _copies(blocks.nbytes, effort)
    exact = x.double() @ torch.from_numpy(gguf.dequantize(blocks, type_name)).double().T
    peers = [Contestant("reading the bytes", kernel_peers.reading(blocks.nbytes, count), None)]
    try:
        theirs = kernel_peers.ggml(blocks, type_name, x, count, effort.threads)
        peers.append(Contestant(named("llama-cpp-python"), theirs, exact, "both: int8 activations"))
    except PeerMissingError as error:
        yield error
    panels = [GgufPanels.from_blocks(torch.from_numpy(blocks), type_name) for _ in range(count)]
    calls = [lambda w=w: panel_linear(x, w) for w in panels]
    what = f"{type_name} panels, {_shape(weight)}, 1 token"
    yield from race(what, Contestant("", calls, exact), peers, blocks.nbytes, effort.rounds)
    copies = [torch.from_numpy(blocks.copy()) for _ in range(count)]
    calls = [lambda b=b: gguf_linear(x, b, type_name) for b in copies]
    what = f"{type_name} blocks, x in float32, {_shape(weight)}, 1 token"
    yield from race(what, Contestant("", calls, exact), peers[:1], blocks.nbytes, effort.rounds)


def _nf4_rows(weight: Tensor, x: Tensor, effort: Effort) -> Iterator[BenchRow]:
    quantized = nf4.quantize(weight, block_size=64)
    count = _copies(quantized.nbytes, effort)
    copies = [CodebookPanels.from_rows(quantized) for _ in range(count)]
    low, dense = x.to(torch.bfloat16), quantized.dequantize().double().T
    exact, low_exact = x.double() @ dense, low.double() @ dense
    theirs = kernel_peers.bitsandbytes_nf4(weight, x, count)
    reading = Contestant("reading the bytes", kernel_peers.reading(quantized.nbytes, count), None)
    shape = f"block 64, {_shape(weight)}, 1 token"
    ours = Contestant("", [lambda w=w: codebook_linear(low, w) for w in copies], low_exact)
    peers = [Contestant(named("bitsandbytes", "bfloat16"), theirs, low_exact), reading]
    yield from race(f"NF4 bfloat16 {shape}", ours, peers, quantized.nbytes, effort.rounds)
    ours = Contestant("", [lambda w=w: codebook_linear(x, w) for w in copies], exact)
    yield from race(f"NF4 float32 {shape}", ours, [reading], quantized.nbytes, effort.rounds)


def _int8_rows(effort: Effort) -> Iterator[BenchRow]:
    tokens, size = (64, 1024) if effort.quick else (512, 4096)
    weight = rtn.quantize(torch.randn(size, size), QuantScheme(8))
    packed, (codes, scale) = (
        Int8Weight.from_quantized(weight),
        quantize_tokens(torch.randn(tokens, size)),
    )
    exact = (codes * scale).double() @ weight.dequantize().double().T
    other = weight.codes.T

    def theirs() -> Tensor:
        return torch._int_mm(codes, other).float() * (scale * weight.scale.reshape(1, -1))

    ours = Contestant("", [lambda: int8_linear(codes, scale, packed)], exact)
    peers = [Contestant(named("torch", "_int_mm of oneDNN, scaled"), [theirs], exact)]
    what = f"W8A8, {_shape(weight)}, {tokens} tokens"
    yield from race(what, ours, peers, packed.nbytes, effort.rounds)


def _shape(weight) -> str:
    return f"{weight.shape[0]} x {weight.shape[1]}"
