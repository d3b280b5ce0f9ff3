"""What only a GPU has: torch's and torchao's kernels for one, and a copy of plain bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.bench.products import GROUP, exact
from labkit.bench.race import Contestant, copies
from labkit.bench.rows import named
from labkit.core.errors import PeerMissingError
from labkit.core.float8_tensor import FP8_MAX, Float8Tensor, to_float8

# It is not there, was built for another torch, or has no kernel for the card.
_TORCHAO_ERRORS = (
    *(ImportError, AttributeError, TypeError),
    *(RuntimeError, AssertionError, ValueError),
)


def copying(nbytes: int, device: torch.device, buffer: int) -> Contestant:
    """Copy a large buffer: every byte is read and written, so half as many stand for ``nbytes``."""
    source = torch.ones(buffer, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Contestant(
        "copy bandwidth",
        [lambda: target.copy_(source)],
        None,
        f"a copy of {buffer / 1e6:.0f} MB",
        counts=nbytes / (2 * buffer),
    )


def matmul(weight: Tensor, x: Tensor, count: int) -> Contestant:
    """torch's product with the weight [out, in] in x's dtype."""
    dense = weight.to(x.dtype)
    name = named("torch", f"{str(x.dtype).removeprefix('torch.')} matmul")
    calls = [lambda w=w: x @ w.T for w in copies(dense, count)]
    return Contestant(name, calls, exact(x, dense))


def torchao_int4(weight: Tensor, count: int) -> list[nn.Module]:
    """Linear layers of torchao's int4 weight-only, in groups of 128, packed for torch's kernel.

    Raises PeerMissingError where it is not installed, or does not run on this device.
    """
    try:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        config = Int4WeightOnlyConfig(GROUP, int4_packing_format="tile_packed_to_4d")
        layers = []
        for _ in range(count):
            layer = nn.Linear(weight.shape[1], weight.shape[0], False, weight.device, weight.dtype)
            layer.requires_grad_(False).weight.copy_(weight)
            quantize_(layer, config)
            layers.append(layer)
        layers[0](weight[:1])  # the columns of a row: as good as any token
    except _TORCHAO_ERRORS as error:
        raise PeerMissingError(
            f"no row beside its int4 ({type(error).__name__}: {error})",
            where="torchao",
            remedy="pip install torchao, one that belongs to this torch.",
        ) from error
    return layers


def scaled_mm(weight: Float8Tensor, x: Tensor, count: int) -> Contestant:
    """torch._scaled_mm: x is rounded to FP8, too, beforehand; one scale each.

    Raises PeerMissingError on a card that has no FP8.
    """
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 9):
        raise PeerMissingError(
            "no row beside torch._scaled_mm: the card has no FP8",
            remedy="It takes compute capability 8.9 or more.",
        )
    step = x.abs().amax().float() / FP8_MAX
    codes, scale = to_float8(x.float() / step), weight.scale.float().reshape(())
    packs = copies(weight.codes, count)
    return Contestant(
        named("torch", "_scaled_mm"),
        [lambda w=w: torch._scaled_mm(codes, w.T, step, scale, out_dtype=x.dtype) for w in packs],
        exact(codes.double() * step.double(), weight.dequantize()),
        "x in FP8, too",
    )
