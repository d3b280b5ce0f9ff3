"""What the processor that we compile for can do."""

from __future__ import annotations

import llvmlite.binding as llvm
import numba


def has(feature: str) -> bool:
    """Whether it has ``feature``, in LLVM's words, such as "avx512f".

    Someone who compiles for another processor (NUMBA_CPU_FEATURES) means that one.
    """
    chosen = numba.config.CPU_FEATURES
    if chosen is not None:
        return f"+{feature}" in chosen.split(",")
    return bool(llvm.get_host_cpu_features().get(feature, False))


def name() -> str:
    """LLVM's name of it, such as "znver4"; of the one that NUMBA_CPU_NAME says, where it does."""
    return numba.config.CPU_NAME or llvm.get_host_cpu_name()
