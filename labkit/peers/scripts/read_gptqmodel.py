"""GPTQModel loads folders, in the GPTQ or the AWQ format, and runs them with its torch kernels.

tensors: tokens int64 [sequences, length]. settings: folders, by a name of your choice; the
names that begin with "awq" are in that format. Returns "FOLDER/logits" float32 (computed in
float32: the model is widened after it was read) and "FOLDER/NAME" float32 [out, in], what each of
its quantized layers makes of the identity; as results the classes of these layers.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import BACKEND, GPTQModel


def main(tensors, settings):
    out, kinds = {}, {}
    for key, folder in settings["folders"].items():
        backend = BACKEND.AWQ_TORCH if key.startswith("awq") else BACKEND.GPTQ_TORCH
        found, kinds[key] = read(tensors["tokens"], folder, backend)
        out |= {f"{key}/{name}": tensor for name, tensor in found.items()}
    return out, kinds


@torch.no_grad()
def read(tokens, folder, backend):
    held = GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.float16)
    model = held.model.eval()
    torch.nn.Module.float(model)  # its own `float` refuses a quantized model
    kinds, out = set(), {}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            kinds.add(type(module).__name__)
            bias, module.bias = module.bias, None
            out[name] = module(torch.eye(module.in_features)).T.float()
            module.bias = bias
    out["logits"] = model(input_ids=tokens).logits.float()
    return out, sorted(kinds)
