"""AutoAWQ 0.2.9 quantizes a model and writes its folder.

tensors: tokens int64 [sequences, length]. settings: source, folder, group_size. Returns "NAME"
float32 [out, in], by its own `dequantize_gemm` on the layers that it holds, with widened scales.
"""

import warnings

import torch

warnings.filterwarnings("ignore")

import awq.modules.linear.gemm as gemm  # noqa: E402
from awq import AutoAWQForCausalLM  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm  # noqa: E402

gemm.TRITON_AVAILABLE = False


def main(tensors, settings):
    rows = tensors["tokens"]
    held = AutoAWQForCausalLM.from_pretrained(
        settings["source"], torch_dtype=torch.float32, use_cache=False, device_map=None
    )
    config = {"zero_point": True, "q_group_size": settings["group_size"], "w_bit": 4}
    held.quantize(
        None,
        quant_config=config | {"version": "GEMM"},
        calib_data=rows.tolist(),
        max_calib_samples=len(rows),
        max_calib_seq_len=rows.shape[1],
    )
    out = {}
    for name, module in held.model.named_modules():
        if isinstance(module, gemm.WQLinear_GEMM):
            parts = (module.qweight, module.qzeros, module.scales.float())
            out[name] = dequantize_gemm(*parts, module.w_bit, module.group_size).T
    held.save_quantized(settings["folder"])
    return out, {}
