"""One weight of each packed form, small, and what it dequantizes to by its own format."""

from __future__ import annotations

from dataclasses import replace

import torch

from labkit.core.float8_tensor import Float8Tensor
from labkit.core.scheme import QuantScheme
from labkit.kernels import GgufPanels, Int8Weight
from labkit.quantize import gguf, nf4, rtn

ROWS, COLUMNS = 80, 256


def _integers(bits, symmetric, group, scale=torch.float16, act_order=False):
    def make(weight):
        granularity = "group" if group else "channel"
        quantized = rtn.quantize(weight, QuantScheme(bits, symmetric, granularity, group))
        changes = {"scale": quantized.scale.to(scale)}
        if act_order:
            changes["g_idx"] = (torch.randperm(weight.shape[1]) // group).to(torch.int32)
        quantized = replace(quantized, **changes)
        return quantized, quantized.dequantize()

    return make


def _blocks(type_name):
    def make(weight):
        packed = gguf.quantize(weight, type_name)
        wanted = torch.from_numpy(gguf.dequantize(packed, type_name))
        return (torch.from_numpy(packed), type_name), wanted

    return make


def _side_by_side(type_name):
    def make(weight):
        (blocks, _), wanted = _blocks(type_name)(weight)
        return GgufPanels.from_blocks(blocks, type_name), wanted

    return make


def _codebook(**options):
    def make(weight):
        quantized = nf4.quantize(weight, **options)
        return quantized, quantized.dequantize()

    return make


def _float8(granularity):
    def make(weight):
        quantized = Float8Tensor.quantize(weight, granularity)
        return quantized, quantized.dequantize()

    return make


def _panels(weight):
    quantized = rtn.quantize(weight, QuantScheme(8))
    return Int8Weight.from_quantized(quantized), quantized.dequantize()


def _floats(dtype):
    return lambda weight: (weight.to(dtype), weight.to(dtype).float())


CASES = {
    "int4 sym group 128": _integers(4, True, 128),
    "int4 asym group 32": _integers(4, False, 32),
    "int4 act-order, bfloat16 scales": _integers(4, False, 64, torch.bfloat16, True),
    "int4 channel, float32 scales": _integers(4, True, None, torch.float32),
    "int2 asym group 64": _integers(2, False, 64),
    "int3 sym act-order": _integers(3, True, 128, act_order=True),
    "int8 sym channel": _integers(8, True, None),
    "int8 asym group 64": _integers(8, False, 64),
    "int8 panels": _panels,
    "nf4": _codebook(),
    "fp4 nested": _codebook(quant_type="fp4", double_quantization=True),
    "nf4 blocks across rows": _codebook(block_size=4096),
    "fp8 channel": _float8("channel"),
    "fp8 tensor": _float8("tensor"),
    "Q4_0": _blocks("Q4_0"),
    "Q4_K": _blocks("Q4_K"),
    "Q8_0": _blocks("Q8_0"),
    "Q3_K": _blocks("Q3_K"),
    "Q6_K": _blocks("Q6_K"),
    "IQ4_XS": _blocks("IQ4_XS"),
    "Q4_K panels": _side_by_side("Q4_K"),
    "Q6_K panels": _side_by_side("Q6_K"),
    "float16": _floats(torch.float16),
    "bfloat16": _floats(torch.bfloat16),
}


def case(name, rows=ROWS, columns=COLUMNS, seed=0):
    """(what `QuantLinear` takes, the float32 weight that it stands for)."""
    torch.manual_seed(seed)
    return CASES[name](torch.randn(rows, columns) * 0.1)
