"""Which vector instructions this processor has, as far as quantized kernels care."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# What we report -> the kernel's names for it (/proc/cpuinfo on Linux, sysctl on macOS).
INSTRUCTIONS = {
    "AVX2": {"avx2", "hw.optional.avx2_0"},
    "AVX-512": {"avx512f", "hw.optional.avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni", "hw.optional.avx512vnni"},
    "AMX": {"amx_int8"},
    "NEON": {"asimd", "neon", "hw.optional.neon", "hw.optional.advsimd"},
    "dot product": {"asimddp", "hw.optional.arm.feat_dotprod"},
    "I8MM": {"i8mm", "hw.optional.arm.feat_i8mm"},
}


def usable_cores() -> int:
    """Cores that this process may use, which a container can limit below the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def flags_of_cpuinfo(text: str) -> set[str]:
    """The feature flags of the first processor in the text of /proc/cpuinfo."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return set(value.lower().split())
    return set()


def flags_of_sysctl(text: str) -> set[str]:
    """The options that are 1 in the output of `sysctl hw.optional`."""
    pairs = (line.lower().partition(":") for line in text.splitlines())
    return {name.strip() for name, _, value in pairs if value.strip() == "1"}


def _flags() -> set[str]:
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "hw.optional"], capture_output=True, text=True, check=False, timeout=10
        )
        return flags_of_sysctl(asked.stdout)
    cpuinfo = Path("/proc/cpuinfo")
    return flags_of_cpuinfo(cpuinfo.read_text()) if cpuinfo.exists() else set()


def instructions(flags: set[str] | None = None) -> list[str]:
    """Names from INSTRUCTIONS that `flags` (default: this processor's) contain."""
    flags = _flags() if flags is None else flags
    return [name for name, spellings in INSTRUCTIONS.items() if spellings & flags]
