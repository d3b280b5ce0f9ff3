"""NF4 and FP4 beside bitsandbytes, HQQ beside the package, on one random weight.

The error is that of the weights, ‖ŵ - w‖ / ‖w‖: nothing here looks at inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from labkit.bench.rows import BenchRow, Effort, alternate, named
from labkit.peers import call
from labkit.quantize import hqq, nf4

_NOTE = "error of the weights"


def rows(effort: Effort) -> Iterator[BenchRow]:
    """NF4 with and without double quantization, FP4, and 4-bit HQQ; quantize, then dequantize.

    Raises:
        PeerMissingError: behind the rows of NF4 and FP4, where hqq's environment is not there.
    """
    size = 1024 if effort.quick else 4096
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 0.02
    for quant_type, double in (("nf4", False), ("nf4", True), ("fp4", False)):
        yield from _codebook_rows(weight, quant_type, double, effort)
    yield _hqq_row(weight[: size // 4], effort)


def _codebook_rows(
    weight: torch.Tensor, quant_type: str, double: bool, effort: Effort
) -> Iterator[BenchRow]:
    import bitsandbytes.functional as bnb

    def theirs() -> tuple[torch.Tensor, object]:
        return bnb.quantize_4bit(
            weight, blocksize=64, compress_statistics=double, quant_type=quant_type
        )

    def ours() -> object:
        return nf4.quantize(weight, quant_type=quant_type, double_quantization=double)

    tensor, (packed, state) = ours(), theirs()
    error = _relative(weight, tensor.dequantize())
    peer_error = _relative(weight, bnb.dequantize_4bit(packed, state))
    shape = f"{weight.shape[0]} x {weight.shape[1]}"
    name = f"{quant_type.upper()} block 64{', double quantization' if double else ''}, {shape}"
    tasks: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("quantize", ours, theirs),
        (
            "dequantize",
            lambda: nf4.dequantize(tensor),
            lambda: bnb.dequantize_4bit(packed, state),
        ),
    ]
    for task, mine, other in tasks:
        seconds, peer_seconds = alternate(mine, _timed(other), effort.rounds)
        yield BenchRow(
            f"{name}: {task}",
            named("bitsandbytes"),
            seconds,
            peer_seconds,
            error,
            peer_error,
            effort.rounds,
            _NOTE,
        )


def _hqq_row(weight: torch.Tensor, effort: Effort) -> BenchRow:
    # The first of two rounds warms their process up, as one that is not timed warms up ours.
    case = {"name": "layer", "bits": 4, "group_size": 64, "rounds": 2}
    last: dict[str, torch.Tensor] = {}

    def theirs() -> float:
        parts, results = call(
            "hqq",
            "hqq_layer",
            {"layer.weight": weight},
            {"cases": [case]},
            threads=effort.threads,
        )
        last.update(parts)
        return results["seconds"][0]

    rounds = min(effort.process_rounds, 2)
    seconds, peer_seconds = alternate(
        lambda: hqq.quantize(weight, 4, 64, scale_dtype=torch.float32), theirs, rounds
    )
    ours = hqq.quantize(weight, 4, 64, scale_dtype=torch.float32)
    codes, scale, zero = (last[f"layer.{part}"] for part in ("codes", "scale", "zero"))
    restored = ((codes - zero) * scale).reshape(weight.shape)
    return BenchRow(
        f"HQQ 4-bit group 64, {weight.shape[0]} x {weight.shape[1]}: quantize",
        "hqq 0.2.8",
        seconds,
        peer_seconds,
        _relative(weight, ours.dequantize(), p=1),
        _relative(weight, restored, p=1),
        rounds,
        "error of the weights, mean |ŵ - w| / mean |w|, which HQQ stops by; a process a round",
    )


def _relative(weight: torch.Tensor, restored: torch.Tensor, p: int = 2) -> float:
    return float((restored - weight).norm(p) / weight.norm(p))


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    once()
    return once
