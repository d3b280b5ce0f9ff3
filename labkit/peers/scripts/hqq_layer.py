"""HQQ 0.2.8 on single weights, on the CPU.

Cases: name, bits, group_size; tensors NAME.weight. Returns NAME.codes (float, as stored),
NAME.scale and NAME.zero, [groups, 1] in float32, and the seconds of each case's last round.
"""

import time

import torch
from hqq.core.quantize import Quantizer


def main(tensors, settings):
    parts, seconds = {}, []
    for case in settings["cases"]:
        name = case["name"]
        for _ in range(case.get("rounds", 1)):
            started = time.perf_counter()
            codes, meta = Quantizer.quantize(
                tensors[f"{name}.weight"],
                nbits=case["bits"],
                group_size=case["group_size"],
                axis=1,
                bitpack=False,
                device="cpu",
                compute_dtype=torch.float32,
            )
            taken = time.perf_counter() - started
        seconds.append(taken)
        parts |= {
            f"{name}.codes": codes,
            f"{name}.scale": meta["scale"],
            f"{name}.zero": meta["zero"],
        }
    return parts, {"seconds": seconds}
