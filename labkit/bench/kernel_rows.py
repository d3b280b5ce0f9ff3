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
from labkit.bench.products import BLOCK, INT4, INT8, QUICK_INT8, SHAPES, exact, sizes
from labkit.bench.race import Contestant, copies, race
from labkit.bench.rows import BenchRow, Effort, named
from labkit.core.errors import PeerMissingError
from labkit.core.float8_tensor import Float8Tensor
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

_CACHE = 2**26  # bytes: more than the last-level cache of most processors
_QUICK_SHAPES = ((1024, 4096),)


def rows(effort: Effort) -> Iterator[BenchRow | PeerMissingError]:
    """Yield the rows as they are measured; a peer that is not there in place of its row."""
    torch.manual_seed(0)
    for shape in _QUICK_SHAPES if effort.quick else SHAPES:
        weight = torch.randn(shape) * 0.02
        for tokens in (1,) if effort.quick else (1, 4, 16):
            yield from _int4_rows(weight, tokens, effort)
        yield from _format_rows(weight, effort)
    yield from _int8_rows(effort)


def _count(nbytes: int, effort: Effort) -> int:
    return 2 if effort.quick else max(2, -(-_CACHE // nbytes))


def _int4_rows(weight: Tensor, tokens: int, effort: Effort) -> Iterator[BenchRow]:
    quantized = rtn.quantize(weight, INT4)
    packed = Int4Panels.from_rows(Int4Weight.from_quantized(quantized))
    count = _count(packed.nbytes, effort)
    parts = zip(copies(packed.codes, count), copies(packed.scale, count), strict=True)
    packs = [replace(packed, codes=codes, scale=scale) for codes, scale in parts]
    x = torch.randn(tokens, weight.shape[1])
    low = x.to(torch.bfloat16)
    found, low_found = (exact(one, quantized.dequantize()) for one in (x, low))
    shape = f"group {INT4.group_size}, {sizes(weight, tokens)}"
    reading = Contestant("reading the bytes", kernel_peers.reading(packed.nbytes, count), None)
    waiting = [reading] if tokens == 1 else []  # with more tokens the bytes are not what takes time
    torch_low = kernel_peers.torch_int4(quantized, low, count)
    bfloat16 = Contestant(named("torch", "bfloat16"), torch_low, low_found)

    ours = Contestant("", [lambda w=w: int4_linear(low, w) for w in packs], low_found)
    what = f"W4A16 bfloat16 {shape}"
    yield from race(what, ours, [bfloat16, *waiting], packed.nbytes, effort.rounds)

    ours = Contestant("", [lambda w=w: int4_linear(x, w) for w in packs], found)
    peers = [
        Contestant(named("torch", "float32"), kernel_peers.torch_int4(quantized, x, count), found),
        _onnx("float32", quantized, x, count, effort.threads, 1, found),
    ]
    what = f"W4A16 float32 {shape}"
    yield from race(what, ours, [*peers, *waiting], packed.nbytes, effort.rounds)

    eight = [lambda w=w: int4_linear(x, w, activation_bits=8) for w in packs]
    theirs = _onnx("int8 activations", quantized, x, count, effort.threads, 4, found)
    ours, peers = Contestant("", eight, found), [bfloat16, theirs, *waiting]
    yield from race(f"W4A8 {shape}", ours, peers, packed.nbytes, effort.rounds)


def _onnx(words, quantized, x, count, threads, level, found) -> Contestant:
    calls = kernel_peers.onnx_int4(quantized, x, count, threads, level)
    return Contestant(named("onnxruntime", words), calls, found)


def _format_rows(weight: Tensor, effort: Effort) -> Iterator[BenchRow | PeerMissingError]:
    """GGUF types beside llama.cpp, NF4 beside bitsandbytes, FP8 alone with the bytes; one token."""
    x = torch.randn(1, weight.shape[1])
    for type_name in ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
        yield from _gguf_rows(type_name, weight, x, effort)
    yield from _nf4_rows(weight, x, effort)
    fp8 = Float8Tensor.quantize(weight)
    count = _count(fp8.nbytes, effort)
    packs = [Float8Tensor(codes, fp8.scale) for codes in copies(fp8.codes, count)]
    calls = [lambda w=w: fp8_linear(x, w) for w in packs]
    ours = Contestant("", calls, exact(x, fp8.dequantize()))
    peers = [Contestant("reading the bytes", kernel_peers.reading(fp8.nbytes, count), None)]
    yield from race(f"FP8, {sizes(weight, 1)}", ours, peers, fp8.nbytes, effort.rounds)


def _gguf_rows(
    type_name: str, weight: Tensor, x: Tensor, effort: Effort
) -> Iterator[BenchRow | PeerMissingError]:
    """Panels with int8 x beside llama.cpp, which does alike; panels and blocks with x as it is."""
    blocks = gguf.quantize(weight, type_name)
    count = _count(blocks.nbytes, effort)
    found = exact(x, torch.from_numpy(gguf.dequantize(blocks, type_name)))
    peers = [Contestant("reading the bytes", kernel_peers.reading(blocks.nbytes, count), None)]
    try:
        theirs = kernel_peers.ggml(blocks, type_name, x, count, effort.threads)
        peers.append(Contestant(named("llama-cpp-python"), theirs, found, "both: int8 activations"))
    except PeerMissingError as error:
        yield error
    panels = [GgufPanels.from_blocks(torch.from_numpy(blocks), type_name) for _ in range(count)]
    packs = copies(torch.from_numpy(blocks), count)
    rounded = [lambda w=w: panel_linear(x, w, activation_bits=8) for w in panels]
    floats = [lambda w=w: panel_linear(x, w) for w in panels]
    straight = [lambda b=b: gguf_linear(x, b, type_name) for b in packs]
    for what, calls, beside in (
        ("panels", rounded, peers),
        ("panels, x in float32", floats, peers[:1]),
        ("blocks, x in float32", straight, peers[:1]),
    ):
        ours, what = Contestant("", calls, found), f"{type_name} {what}, {sizes(weight, 1)}"
        yield from race(what, ours, beside, blocks.nbytes, effort.rounds)


def _nf4_rows(weight: Tensor, x: Tensor, effort: Effort) -> Iterator[BenchRow]:
    quantized = nf4.quantize(weight, block_size=BLOCK)
    count, low = _count(quantized.nbytes, effort), x.to(torch.bfloat16)
    packs = [CodebookPanels.from_rows(quantized) for _ in range(count)]
    found, low_found = (exact(one, quantized.dequantize()) for one in (x, low))
    reading = Contestant("reading the bytes", kernel_peers.reading(quantized.nbytes, count), None)
    shape = f"block {BLOCK}, {sizes(weight, 1)}"
    ours = Contestant("", [lambda w=w: codebook_linear(low, w) for w in packs], low_found)
    peers = [kernel_peers.bitsandbytes_nf4(weight, low, count, "bfloat16"), reading]
    yield from race(f"NF4 bfloat16 {shape}", ours, peers, quantized.nbytes, effort.rounds)
    ours = Contestant("", [lambda w=w: codebook_linear(x, w) for w in packs], found)
    yield from race(f"NF4 float32 {shape}", ours, [reading], quantized.nbytes, effort.rounds)


def _int8_rows(effort: Effort) -> Iterator[BenchRow]:
    tokens, size = QUICK_INT8 if effort.quick else INT8
    weight = rtn.quantize(torch.randn(size, size), QuantScheme(8))
    packed, (codes, scale) = (
        Int8Weight.from_quantized(weight),
        quantize_tokens(torch.randn(tokens, size)),
    )
    peer = kernel_peers.int_mm(codes, scale, weight)
    ours = Contestant("", [lambda: int8_linear(codes, scale, packed)], peer.exact)
    what = f"W8A8, {sizes(weight, tokens)}"
    yield from race(what, ours, [peer], packed.nbytes, effort.rounds)
