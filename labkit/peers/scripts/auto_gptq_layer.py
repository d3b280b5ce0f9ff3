"""AutoGPTQ 0.7.1 on one layer: its own `fasterquant`, on a weight and a Hessian from outside.

tensors: weight [out, in], hessian [in, in]. settings: bits, symmetric, group_size (-1: channel),
damp, act_order, static_groups, block_size, rounds. Returns weight (what its integers stand for, in
float32), scale, zero [out, groups], g_idx [in]; seconds (the median).

A CPU needs one patch: `torch.cuda.synchronize`, which it calls at the end, becomes a no-op.
"""

import statistics
import time

import torch
from auto_gptq.quantization.gptq import GPTQ


def main(tensors, settings):
    torch.cuda.synchronize = lambda *_: None
    seconds = []
    for _ in range(settings.get("rounds", 1)):
        weight = tensors["weight"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        solver = GPTQ(layer)
        solver.H = tensors["hessian"].clone()
        solver.nsamples = 1
        solver.quantizer.configure(
            settings["bits"], perchannel=True, sym=settings["symmetric"], mse=False
        )
        started = time.perf_counter()
        scale, zero, g_idx = solver.fasterquant(
            blocksize=settings.get("block_size", 128),
            percdamp=settings["damp"],
            group_size=settings["group_size"],
            actorder=settings["act_order"],
            static_groups=settings["static_groups"],
        )
        seconds.append(time.perf_counter() - started)
    parts = {"weight": layer.weight.data, "scale": scale, "zero": zero, "g_idx": g_idx}
    return parts, {"seconds": statistics.median(seconds)}
