"""torchao 0.18's FakeQuantizedLinear on single layers: what it rounds to, and its gradients.

Cases: name, bits, group_size (0: by channel), inputs (true: 8 bits token by token), learned (true:
its range learning). Tensors NAME.weight [out, in], NAME.x [tokens, in], NAME.pull [tokens, out],
what y is multiplied by before it is summed and differentiated. Returns NAME.y, NAME.weight (as
rounded), NAME.scale [out, groups], NAME.by_weight, NAME.by_x, and NAME.by_scale of learned ones;
NAME.converted, y of the layer that convert makes, and NAME.codes, its integers, of the others.
"""

import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig


def main(tensors, settings):
    found = {}
    for case in settings["cases"]:
        name = case["name"]
        weight, x, pull = (tensors[f"{name}.{part}"] for part in ("weight", "x", "pull"))
        found |= {f"{name}.{key}": value for key, value in one(case, weight, x, pull).items()}
    return found, {}


def one(case, weight, x, pull):
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight = nn.Parameter(weight)
    x.requires_grad_()
    granularity = PerGroup(case["group_size"]) if case["group_size"] else PerAxis(0)
    dtype = getattr(torch, f"int{case['bits']}")
    base = None
    if case.get("learned"):
        grid = IntxFakeQuantizeConfig(dtype, granularity, is_dynamic=False, range_learning=True)
        quantize_(model, QATConfig(weight_config=grid, step="prepare"))
        model[0].weight_fake_quantizer._initialized = True
        model(x)  # its first call makes the scale a parameter
    else:
        if case.get("inputs"):
            base = Int8DynamicActivationIntxWeightConfig(
                weight_dtype=dtype, weight_granularity=granularity
            )
        else:
            base = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
        quantize_(model, QATConfig(base, step="prepare"))
    y = model(x)
    (y * pull).sum().backward()
    fake = model[0].weight_fake_quantizer
    parts = {
        "y": y,
        "weight": fake(model[0].weight),
        "scale": fake.scale,
        "by_weight": model[0].weight.grad,
        "by_x": x.grad,
    }
    if base is None:
        return parts | {"by_scale": fake.scale.grad}
    quantize_(model, QATConfig(base, step="convert"))
    with torch.no_grad():
        return parts | {"converted": model(x), "codes": model[0].weight.qdata}
