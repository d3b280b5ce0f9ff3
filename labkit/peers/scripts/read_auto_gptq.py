"""AutoGPTQ 0.7.1 loads folders and runs them on a CPU.

tensors: tokens int64 [sequences, length]. settings: folders, by a name of your choice. Returns
"FOLDER/logits" float32 (computed in float32: the model is widened after it was read), and
"FOLDER/NAME" [out, in], what each of its QuantLinear layers makes of the identity; as results the
modules that these layers come from.
"""

import torch
from auto_gptq import AutoGPTQForCausalLM

torch.cuda.synchronize = lambda *_: None


def main(tensors, settings):
    out, kinds = {}, {}
    for key, folder in settings["folders"].items():
        found, kinds[key] = read(tensors["tokens"], folder)
        out |= {f"{key}/{name}": tensor for name, tensor in found.items()}
    return out, kinds


@torch.no_grad()
def read(tokens, folder):
    model = AutoGPTQForCausalLM.from_quantized(
        folder,
        device="cpu",
        use_safetensors=True,
        disable_exllama=True,
        disable_exllamav2=True,
    ).model.float()
    kinds = set()
    out = {}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            kinds.add(type(module).__module__)
            bias, module.bias = module.bias, None
            out[name] = module(torch.eye(module.infeatures)).T
            module.bias = bias
    out["logits"] = model(input_ids=tokens).logits
    return out, sorted(kinds)
