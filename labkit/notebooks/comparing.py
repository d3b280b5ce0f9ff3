"""Run the committed notebooks again with nbval, strictly: every output must come out the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.notebooks.running import OTHER_CPU, fresh_learner
from labkit.notebooks.source import Pair

CELL_TIMEOUT = 120
SANITIZE = "nbval_sanitize.cfg"


def command(notebooks: Sequence[Path], folder: Path, jobs: int = 1) -> list[str]:
    """The pytest command that compares `notebooks`, whole ones in each of `jobs` processes."""
    shared = ("-n", str(jobs), "--dist", "loadscope") if jobs > 1 else ()
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--nbval"),
        *("--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT}"),
        *("--nbval-sanitize-with", str(folder / SANITIZE)),
        *shared,
        *map(str, notebooks),
    ]


def compare(pairs: Sequence[Pair], other_cpu: bool = False, jobs: int = 1) -> int:
    """pytest's exit code for all `pairs`; `other_cpu` imitates a smaller, older machine."""
    notebooks = [pair.notebook for pair in pairs]
    folder = pairs[0].course
    with fresh_learner() as environment:
        environment |= OTHER_CPU if other_cpu else {}
        if jobs > 1:
            # Threads of OpenMP wait busily: more of them than cores make all many times slower.
            threads = str(max(1, (os.cpu_count() or 1) // jobs))
            environment |= {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        return subprocess.run(
            command(notebooks, folder, jobs), cwd=folder.parent, env=environment, check=False
        ).returncode
