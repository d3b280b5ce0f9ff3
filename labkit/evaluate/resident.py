"""How much memory this process holds, and held at most: what Linux itself counts.

Pages of libraries and of mapped files count where they are in memory, as `top` shows them.
"""

from __future__ import annotations

import re
from pathlib import Path

from labkit.core.errors import ModelError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def available() -> bool:
    """Whether this system says it: Linux does."""
    return _STATUS.is_file()


def resident_bytes() -> int:
    """Bytes in memory now (VmRSS). Raises ModelError where the system does not say."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """The most since the process began, or since `reset_peak` (VmHWM).

    Raises ModelError where the system does not say.
    """
    return _field("VmHWM")


def reset_peak() -> bool:
    """Count the peak from now on; False where the system keeps the old one."""
    try:
        _CLEAR.write_text("5")  # proc(5), /proc/PID/clear_refs
    except OSError:
        return False
    return True


def _field(name: str) -> int:
    if not available():
        raise ModelError(
            "this system does not say how much memory a process holds",
            where="/proc/self/status",
            remedy="Measure memory on Linux.",
        )
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, name
    return 1024 * int(found[1])
