"""GPTQ on one layer, beside AutoGPTQ and GPTQModel: the same weight and Hessian, the same grid."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from labkit.bench.rows import BenchRow, Effort, alternate
from labkit.core.scheme import QuantScheme
from labkit.peers.call import call
from labkit.quantize import gptq
from labkit.quantize.hessian import InputStats

PEERS = (
    ("AutoGPTQ 0.7.1", "auto_gptq", "auto_gptq_layer"),
    ("GPTQModel 7.6.0", "gptqmodel", "gptqmodel_layer"),
)
GROUP = 128
DAMP = 0.01


def rows(effort: Effort) -> Iterator[BenchRow]:
    """One row a peer: 4096 × 4096 weights (quick: 1024 × 1024), 4 bits, groups of 128.

    Raises:
        PeerMissingError: the first peer whose environment is not there.
    """
    size = 1024 if effort.quick else 4096
    weight, stats = problem(size)
    scheme = QuantScheme(4, True, "group", GROUP, narrow_range=False)
    solution: list[gptq.GptqSolution] = []
    floor = seconds_of_products(size)

    def ours() -> None:
        solution[:] = [gptq.solve(weight, stats, scheme, damp=DAMP, scale_dtype=torch.float32)]

    hessian = stats.hessian()
    case = {"name": "layer", "bits": 4, "symmetric": True, "group_size": GROUP, "damp": DAMP}
    given = {"layer.weight": weight, "layer.hessian": hessian}
    for label, peer, script in PEERS:
        rounded: list[torch.Tensor] = []

        def theirs(peer: str = peer, script: str = script, kept: list = rounded) -> float:
            # The first of two runs warms their process up, as one untimed run warms up ours.
            settings = {"cases": [case | {"rounds": 2}]}
            found, results = call(peer, script, given, settings, threads=effort.threads)
            kept[:] = [found["0.weight"]]
            return results["seconds"][-1]

        seconds, peer_seconds = alternate(ours, theirs, effort.process_rounds)
        yield BenchRow(
            what=f"GPTQ, {size} × {size}, int4 group {GROUP}",
            peer=label,
            seconds=seconds,
            peer_seconds=peer_seconds,
            error=relative_error(weight, solution[0].quantized.dequantize(), hessian),
            peer_error=relative_error(weight, rounded[0], hessian),
            rounds=effort.process_rounds,
            note=f"products alone, at the speed of torch's own here: {floor:.2f} s",
        )


def seconds_of_products(size: int) -> float:
    """What the arithmetic of one layer [size, size] would take if all of it ran like torch's `@`.

    Factoring H takes size³ / 3 operations, passing errors on size³, correcting blocks of 128
    columns 2 · 128 · size². AutoGPTQ's three factorisations take size³ · 4 / 3 instead of a third.
    """
    a, b = torch.randn(2, size, size)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    operations = size**3 * 4 / 3 + 2 * 128 * size**2
    return operations / (2 * size**3 / min(times))


def problem(size: int) -> tuple[torch.Tensor, InputStats]:
    """A weight [size, size] and correlated inputs, twice as many tokens as columns."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator) * size**-0.5
    inputs = torch.randn(2 * size, size, generator=generator)
    # Neighbours share half of their variance, and channels differ in size as a model's do.
    inputs = (inputs + inputs.roll(1, dims=1)) * torch.linspace(-1, 1, size).exp()
    return weight, InputStats(size).add(inputs)


def relative_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """‖(W - Q) X‖ / ‖W X‖, by way of H = (2/N) X Xᵀ."""
    change = weight - rounded
    damage = float((change @ hessian * change).sum(dtype=torch.float64))
    whole = float((weight @ hessian * weight).sum(dtype=torch.float64))
    return (max(damage, 0.0) / whole) ** 0.5
