"""AutoGPTQ 0.7.1 on a whole Llama: its own `quantize`, on given token ids.

`tensors["ids"]` int64 [sequences, length]; settings: model (a folder), bits, group_size, symmetric,
damp, act_order. Returns the weights of the decoder's linear layers by name, as its integers stand
for them (float32, before scales are rounded to float16), and the seconds that it took.

A CPU needs these patches: `torch.cuda.synchronize` becomes a no-op, and its constant for the first
GPU the CPU. Its packing into kernels, which changes no integer, is left out.
"""

import logging
import time
import warnings

import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

from auto_gptq import BaseQuantizeConfig  # noqa: E402
from auto_gptq.modeling import _base  # noqa: E402
from auto_gptq.modeling.llama import LlamaGPTQForCausalLM  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def main(tensors, settings):
    torch.cuda.synchronize = lambda *_: None
    _base.CUDA_0 = torch.device("cpu")
    _base.pack_model = lambda **_: None
    model = AutoModelForCausalLM.from_pretrained(settings["model"], torch_dtype=torch.float32)
    config = BaseQuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        damp_percent=settings["damp"],
        desc_act=settings["act_order"],
        sym=settings["symmetric"],
    )
    held = LlamaGPTQForCausalLM(model.eval(), False, config)
    examples = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]}
        for row in tensors["ids"]
    ]
    started = time.perf_counter()
    held.quantize(examples, batch_size=8)
    seconds = time.perf_counter() - started
    weights = {
        f"{name}.weight": module.weight.data.float()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    return weights, {"seconds": seconds}
