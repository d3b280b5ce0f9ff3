"""How much memory GPUs really have: what the driver reports, beside what the box says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """``advertised_gb`` as sold; ``mib`` as ``nvidia-smi`` reports the total, in MiB (2**20 bytes).

    Where the two differ by more than the unit, error correction has taken its share.
    """

    name: str
    advertised_gb: int
    mib: int

    @property
    def gib(self) -> float:
        """Memory in GiB (2**30 bytes)."""
        return self.mib / 1024


GPUS: dict[str, GPU] = {
    gpu.name: gpu
    for gpu in (
        GPU("RTX 3060", 12, 12288),
        GPU("T4", 16, 15360),
        GPU("RTX 4060 Ti", 16, 16380),
        GPU("L4", 24, 23034),
        GPU("RTX 4090", 24, 24564),
        GPU("RTX 3090", 24, 24576),
        GPU("RTX 5090", 32, 32607),
        GPU("A100 40 GB", 40, 40960),
        GPU("L40S", 48, 46068),
        GPU("H100", 80, 81559),
        GPU("A100 80 GB", 80, 81920),
        GPU("H200", 141, 143771),
        GPU("B200", 180, 183359),
    )
}
