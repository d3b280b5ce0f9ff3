"""transformers loads folders by itself, with whichever library it needs for the format.

tensors: tokens int64 [sequences, length]. settings: folders, by a name of your choice; dtype
("float32"), in which they are read, before they are widened to float32. Returns "FOLDER/logits",
and "FOLDER/NAME" float32 [out, in] of each linear layer of the blocks, where the library unpacks
its weights (compressed-tensors does so at the first forward pass); as results what became of them.
"""

import torch
from transformers import AutoModelForCausalLM


def main(tensors, settings):
    out, kinds = {}, {}
    dtype = getattr(torch, settings.get("dtype", "float32"))
    for key, folder in settings["folders"].items():
        found, kinds[key] = read(tensors["tokens"], folder, dtype)
        out |= {f"{key}/{name}": tensor for name, tensor in found.items()}
    return out, kinds


@torch.no_grad()
def read(tokens, folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype).eval()
    torch.nn.Module.float(model)  # its own `float` refuses a quantized model
    out = {"logits": model(input_ids=tokens).logits.float()}
    kinds = set()
    for name, module in model.named_modules():
        if ".layers." in name and hasattr(module, "weight") and isinstance(module, torch.nn.Linear):
            if getattr(module, "quantization_status", None) is not None:
                kinds.add(str(module.quantization_status.value))
            out[name] = module.weight.float()
        elif hasattr(module, "qweight"):
            kinds.add(type(module).__module__)
    return out, sorted(kinds)
