"""The device that a bench runs on: a CPU, or a CUDA card, with its clock and its memory."""

from __future__ import annotations

import re
from typing import Protocol

import torch

from labkit.bench.race import Clock, each_call, on_the_card
from labkit.core.errors import SchemeError
from labkit.evaluate import resident

NAMES = ("cpu", "cuda")


def found(wanted: str) -> torch.device:
    """The device of that name. Raises SchemeError for another name, or where there is no card."""
    if wanted not in NAMES:
        raise SchemeError(f"device {wanted!r}", "labkit bench", f"Choose from {', '.join(NAMES)}.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SchemeError(
            "torch sees no CUDA device",
            "labkit bench --device cuda",
            "It needs an NVIDIA card, its driver, and a torch that was built for CUDA.",
        )
    return torch.device(wanted)


def clock(device: torch.device) -> Clock:
    """What times calls there."""
    return on_the_card if device.type == "cuda" else each_call


def cache_bytes(device: torch.device) -> int:
    """Bytes of weights that no cache of the card holds: four times its last one.

    0 on a CPU, where the benches of a card are only tried, with kernels interpreted.
    """
    if device.type != "cuda":
        return 0
    return 4 * torch.cuda.get_device_properties(device).L2_cache_size


def name(device: torch.device) -> str:
    """The card's own name; "cpu" for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def slug(device: str) -> str:
    """The device's name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name(torch.device(device)).lower()).strip("-")


class Gauge(Protocol):
    """Bytes of memory since it was made."""

    def held(self) -> int:
        """What tensors take now."""
        ...

    def peak(self) -> int:
        """The most that was taken for them."""
        ...

    def taken(self) -> int:
        """What is taken now, whatever for."""
        ...


def gauge(device: torch.device) -> Gauge:
    """Of a card's memory; on a CPU, of this process."""
    return _CardGauge() if device.type == "cuda" else _ProcessGauge()


class _CardGauge:
    def __init__(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def held(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved()

    def taken(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free


class _ProcessGauge:
    def __init__(self) -> None:
        resident.reset_peak()
        self._before = resident.resident_bytes()

    def held(self) -> int:
        return resident.resident_bytes() - self._before

    def peak(self) -> int:
        return resident.peak_bytes() - self._before

    def taken(self) -> int:
        return self.held()
