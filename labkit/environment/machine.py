"""Python, processor, memory, disk and GPU: what the course will run on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import psutil

from labkit.environment.finding import Finding, State
from labkit.environment.packages import INSTALL, ROOT, installed_version
from labkit.environment.processor import instructions, usable_cores

OLDEST_PYTHON = (3, 11)
COMFORTABLE_MEMORY_GIB = 4
COMFORTABLE_DISK_GIB = 2


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Whether this Python is new enough."""
    found = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version[:2] < OLDEST_PYTHON:
        return Finding("Python", found, State.STOPS, "make lab PYTHON=/path/to/python3.11 or newer")
    return Finding("Python", found)


def check_cores() -> Finding:
    """Cores that this process may use."""
    found = f"{usable_cores()} usable of {os.cpu_count()} ({platform.machine()})"
    return Finding("Cores", found)


def check_instructions() -> Finding:
    """The vector instructions that the kernels of the course, torch and llama.cpp can use."""
    found = instructions()
    if not found:
        return Finding("SIMD", "none known", State.NOTE, "kernels will be slow; results the same")
    return Finding("SIMD", ", ".join(found))


def check_memory() -> Finding:
    """Total and available memory."""
    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    found = f"{total:.1f} GiB, {free:.1f} GiB available"
    if free < COMFORTABLE_MEMORY_GIB:
        advice = f"close other programs: the notebooks want {COMFORTABLE_MEMORY_GIB} GiB"
        return Finding("Memory", found, State.NOTE, advice)
    return Finding("Memory", found)


def check_disk(folder: Path = ROOT) -> Finding:
    """Free space where the course lies."""
    free = shutil.disk_usage(folder).free / 2**30
    if free < COMFORTABLE_DISK_GIB:
        advice = f"free {COMFORTABLE_DISK_GIB} GiB: notebooks write quantized models"
        return Finding("Disk", f"{free:.1f} GiB free", State.NOTE, advice)
    return Finding("Disk", f"{free:.1f} GiB free")


def check_home() -> Finding:
    """Whether progress can be saved: $LABKIT_HOME or the user's data directory."""
    home = Path(os.environ.get("LABKIT_HOME") or platformdirs.user_data_dir("labkit"))
    standing = next(folder for folder in [home, *home.parents] if folder.exists())
    if not os.access(standing, os.W_OK):
        advice = "progress is kept in memory only; set LABKIT_HOME to a folder you can write to"
        return Finding("Progress", f"{home} cannot be written", State.NOTE, advice)
    return Finding("Progress", str(home))


def nvidia_gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU that the driver reports; empty without a driver."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    query = [smi, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    return asked.stdout.strip().splitlines() if asked.returncode == 0 else []


def check_gpu() -> Finding:
    """The GPU, and whether the installed torch was built for it."""
    gpus = nvidia_gpus()
    if not gpus:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            return Finding("GPU", "Apple GPU; the course computes on the CPU here")
        return Finding("GPU", "none; nothing in the course needs one")
    torch = installed_version("torch") or ""
    if torch.endswith("+cpu"):
        public = torch.partition("+")[0]
        advice = f"{INSTALL} --force-reinstall torch=={public}"
        return Finding("GPU", f"{'; '.join(gpus)}, but torch is a CPU build", State.NOTE, advice)
    return Finding("GPU", "; ".join(gpus))


def check_machine() -> list[Finding]:
    """All of the above."""
    checks = (check_python, check_cores, check_instructions, check_memory, check_disk)
    return [check() for check in (*checks, check_gpu, check_home)]
