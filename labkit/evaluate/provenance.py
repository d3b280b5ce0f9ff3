"""Where a figure comes from: the versions and the processor that every results file names."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """The processor as its maker names it, or the architecture where nothing says more."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def made_with() -> dict[str, object]:
    """Python, torch, processor and threads of this run; the GPU's name if there is one.

    A name such as "AMD EPYC" says little, so the core's design, the cores that this process may use
    and the vector instructions that kernels care about stand beside it.
    """
    import torch

    from labkit.environment.processor import instructions, usable_cores
    from labkit.quantize.processor import name

    gpu = {"gpu": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.system(),
        "cpu": cpu_name(),
        "design": name(),
        "cores": usable_cores(),
        "instructions": instructions(),
        "threads": torch.get_num_threads(),
        **gpu,
    }
