"""The rows for a card, on a CPU: Triton's kernels interpreted, shapes tiny. Prints JSON.

Run as a program with TRITON_INTERPRET=1: Triton reads that when it is imported.
"""

from __future__ import annotations

import json

import torch

from labkit.bench import gpu_rows
from labkit.bench.rows import Effort
from labkit.kernels import choose


def main() -> None:
    assert choose.interpreted()
    torch.set_num_threads(1)
    gpu_rows.QUICK_SHAPES, gpu_rows.QUICK_INT8 = ((64, 256),), (20, 64)
    for row in gpu_rows.rows(Effort(quick=True, rounds=1, threads=1), "cpu"):
        print(json.dumps(row.as_dict() if hasattr(row, "as_dict") else {"missing": str(row)}))


if __name__ == "__main__":
    main()
