"""AutoGPTQ 0.7.1 quantizes a model and writes folders.

tensors: tokens int64 [sequences, length]. settings: source, and folders: by a name of your choice,
{folder, bits, group_size, desc_act, sym}. Returns "FOLDER/logits" float32 of the quantized model
that it holds, before it is written.
"""

import auto_gptq.modeling._base as base
import torch
from auto_gptq import BaseQuantizeConfig
from auto_gptq.modeling import LlamaGPTQForCausalLM
from transformers import AutoModelForCausalLM

torch.cuda.synchronize = lambda *_: None
base.CUDA_0 = torch.device("cpu")


def main(tensors, settings):
    return {
        f"{key}/logits": write(tensors["tokens"], settings["source"], wanted)
        for key, wanted in settings["folders"].items()
    }, {}


def write(rows, source, settings):
    kept = ("bits", "group_size", "desc_act", "sym")
    config = BaseQuantizeConfig(**{key: settings[key] for key in kept})
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float32)
    wrapped = LlamaGPTQForCausalLM(model.eval(), False, config)
    wrapped.quantize([{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows])
    with torch.no_grad():
        logits = wrapped.model(input_ids=rows).logits
    wrapped.save_quantized(settings["folder"], use_safetensors=True)
    return logits
