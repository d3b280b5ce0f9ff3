"""GPTQModel 7.6.0 on single layers: the quantizer that its loop calls, on given Hessians.

Takes and returns what auto_gptq_layer.py does; a case may also ask for group_aware, and returns the
damp that was used in a list "damp".
"""

import os
import time

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ


def main(tensors, settings):
    parts, seconds, damp = {}, [], []
    for number, case in enumerate(settings["cases"]):
        for _ in range(case.get("rounds", 1)):
            weight = tensors[f"{case['name']}.weight"]
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight.clone()
            config = QuantizeConfig(
                bits=case["bits"],
                group_size=case["group_size"],
                sym=case["symmetric"],
                desc_act=case.get("act_order", False),
                act_group_aware=case.get("group_aware", False),
                static_groups=case.get("static_groups", False),
                damp_percent=case["damp"],
                mse=0.0,
            )
            config.fallback = None
            solver = GPTQ(layer, config)
            solver.quantizer.configure(perchannel=True)
            solver.H = tensors[f"{case['name']}.hessian"].clone()
            solver.nsamples = 1
            started = time.perf_counter()
            with torch.inference_mode():
                found = solver.quantize(blocksize=case.get("block_size", 128))
            seconds.append(time.perf_counter() - started)
        rounded, scale, zero, g_idx, _, _, used, _ = found
        damp.append(float(used))
        kept = {"weight": rounded, "scale": scale, "zero": zero, "g_idx": g_idx}
        parts |= {f"{number}.{part}": tensor.clone() for part, tensor in kept.items()}
    return parts, {"seconds": seconds, "damp": damp}
