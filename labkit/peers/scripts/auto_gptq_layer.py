"""AutoGPTQ 0.7.1 on single layers: its own `fasterquant`, on weights and Hessians from outside.

tensors: "NAME.weight" [out, in], "NAME.hessian" [in, in]. settings: "cases", a list of dicts: name
(of the tensors), bits, symmetric, group_size (-1: channel), damp, act_order, static_groups,
block_size, rounds (how often it is timed). Returns, for the i-th case, "i.weight" (what its
integers stand for, float32), "i.scale", "i.zero" [out, groups], "i.g_idx" [in]; and "seconds", a
list with every time.

A CPU needs one patch: `torch.cuda.synchronize`, which it calls at the end, becomes a no-op.
"""

import time

import torch
from auto_gptq.quantization.gptq import GPTQ


def main(tensors, settings):
    torch.cuda.synchronize = lambda *_: None
    parts, seconds = {}, []
    for number, case in enumerate(settings["cases"]):
        for _ in range(case.get("rounds", 1)):
            weight = tensors[f"{case['name']}.weight"]
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight.clone()
            solver = GPTQ(layer)
            solver.H = tensors[f"{case['name']}.hessian"].clone()
            solver.nsamples = 1
            solver.quantizer.configure(
                case["bits"], perchannel=True, sym=case["symmetric"], mse=False
            )
            started = time.perf_counter()
            scale, zero, g_idx = solver.fasterquant(
                blocksize=case.get("block_size", 128),
                percdamp=case["damp"],
                group_size=case["group_size"],
                actorder=case.get("act_order", False),
                static_groups=case.get("static_groups", False),
            )
            took = time.perf_counter() - started
            seconds.append(took)
        found = {"weight": layer.weight.data, "scale": scale, "zero": zero, "g_idx": g_idx}
        parts |= {f"{number}.{part}": tensor for part, tensor in found.items()}
    return parts, {"seconds": seconds}
