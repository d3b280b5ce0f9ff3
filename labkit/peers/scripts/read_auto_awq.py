"""AutoAWQ 0.2.9 loads folders and runs them on a CPU.

tensors: tokens int64 [sequences, length]. settings: folders, by a name of your choice. Returns
"FOLDER/logits" (its arithmetic is float16) and "FOLDER/NAME" float32 [out, in], by its own
`dequantize_gemm` with widened scales.

Two patches for a CPU: it would insist on intel_extension_for_pytorch where the device is "cpu", and
would call Triton where that is installed.
"""

import warnings

import torch

warnings.filterwarnings("ignore")

import awq.models.base as base  # noqa: E402
import awq.modules.linear.gemm as gemm  # noqa: E402
from awq import AutoAWQForCausalLM  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm  # noqa: E402

base.get_best_device = lambda: "cpu:0"
gemm.TRITON_AVAILABLE = False


def main(tensors, settings):
    out = {}
    for key, folder in settings["folders"].items():
        found = read(tensors["tokens"], folder)
        out |= {f"{key}/{name}": tensor for name, tensor in found.items()}
    return out, {}


@torch.no_grad()
def read(tokens, folder):
    model = AutoAWQForCausalLM.from_quantized(
        folder, fuse_layers=False, device_map={"": "cpu"}
    ).model
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, gemm.WQLinear_GEMM):
            parts = (module.qweight, module.qzeros, module.scales.float())
            out[name] = dequantize_gemm(*parts, module.w_bit, module.group_size).T
    out["logits"] = model(input_ids=tokens).logits.float()
    return out
