"""The real libraries' kernels for 4- and 8-bit weights, each as calls of no argument."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from torch import Tensor

from labkit.bench.products import BLOCK, GROUP, exact
from labkit.bench.race import Call, Contestant, copies
from labkit.bench.rows import named
from labkit.core.huge_pages import empty_bytes
from labkit.core.tensor import QuantizedTensor
from labkit.kernels.cpu.read import STEP, read


def reading(nbytes: int, count: int) -> list[Call]:
    """A vectorised read of as many bytes: nothing that needs them all can be faster."""
    size = max(STEP, nbytes // STEP * STEP)
    tables = [empty_bytes(size).fill_(1).numpy() for _ in range(count)]
    return [lambda t=t: read(t) for t in tables]


def torch_int4(weight: QuantizedTensor, x: Tensor, count: int) -> list[Call]:
    """torch._weight_int4pack_mm_for_cpu in x's dtype, symmetric weight in groups."""
    codes = (weight.codes.to(torch.int32) + 8).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scale = weight.scale.to(x.dtype).T.contiguous()
    both = torch.stack([scale, torch.zeros_like(scale)], dim=2).contiguous()
    run = torch.ops.aten._weight_int4pack_mm_for_cpu
    packs = zip(copies(packed, count), copies(both, count), strict=True)
    return [lambda p=p, b=b: run(x, p, GROUP, b) for p, b in packs]


def bitsandbytes_nf4(weight: Tensor, x: Tensor, count: int, words: str) -> Contestant:
    """bitsandbytes' gemv_4bit on an NF4 weight; x: one token, in bfloat16.

    On a CPU with AVX512-BF16 it reads an order of its own; on other CPUs it dequantizes.
    """
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    found = exact(x, bnb.dequantize_4bit(packed, state))
    if x.device.type == "cpu" and bnb.has_avx512bf16():
        packed, state = bnb._convert_weight_packed_for_cpu(packed, state)
    states = [copy(state) for _ in range(count)]
    for one, absmax in zip(states, copies(state.absmax, count), strict=True):
        one.absmax = absmax
    packs = zip(copies(packed, count), states, strict=True)
    calls: list[Call] = [lambda p=p, s=s: bnb.gemv_4bit(x, p, state=s) for p, s in packs]
    return Contestant(named("bitsandbytes", words), calls, found)


def int_mm(codes: Tensor, scale: Tensor, weight: QuantizedTensor) -> Contestant:
    """torch._int_mm of int8 codes [tokens, in] with int8 [out, in], scaled afterwards."""
    found = exact(codes.double() * scale, weight.codes.double() * weight.scale)
    row, other = weight.scale.reshape(1, -1), weight.codes.T
    whose = "_int_mm of oneDNN" if codes.device.type == "cpu" else "_int_mm"
    call: Call = lambda: torch._int_mm(codes, other).float() * (scale * row)  # noqa: E731
    return Contestant(named("torch", f"{whose}, scaled"), [call], found)


def onnx_int4(
    weight: QuantizedTensor, x: Tensor, count: int, threads: int, accuracy_level: int
) -> list[Call]:
    """ONNX Runtime's MatMulNBits; accuracy level 1 computes in float32, 4 with int8 activations."""
    import onnx
    import onnxruntime

    rows, columns = weight.shape
    codes = (weight.codes.to(torch.int16) + 8).to(torch.uint8).numpy()
    pairs = codes.reshape(rows, columns // GROUP, GROUP // 2, 2)
    packed = pairs[..., 0] | (pairs[..., 1] << 4)
    scale = weight.scale.float().numpy().reshape(-1)
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=4,
        block_size=GROUP,
        accuracy_level=accuracy_level,
    )
    number = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", number, [len(x), columns])],
        [onnx.helper.make_tensor_value_info("y", number, [len(x), rows])],
        [onnx.numpy_helper.from_array(packed, "w"), onnx.numpy_helper.from_array(scale, "s")],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would go on spinning while another contestant runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = model.SerializeToString()
    sessions = [
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for _ in range(count)
    ]
    feed = {"x": x.float().numpy()}
    return [lambda s=s: torch.from_numpy(s.run(None, feed)[0]) for s in sessions]


def ggml(blocks: np.ndarray, type_name: str, x: Tensor, count: int, threads: int) -> list[Call]:
    """llama.cpp's product, its repacked form where it has one.

    Raises PeerMissingError where llama-cpp-python is not there.
    """
    from labkit.peers.ggml_matmul import MatMul

    products = [MatMul(blocks, type_name, len(x), threads) for _ in range(count)]

    def call(product: MatMul) -> Tensor:
        product.compute()
        return torch.from_numpy(product.get())

    for product in products:
        product.set(x.float().numpy())
    return [lambda p=p: call(p) for p in products]
