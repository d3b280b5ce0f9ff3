"""What llama.cpp does to the inputs of a layer with quantized weights: it rounds them to 8 bits.

Its CPU kernels multiply integers, so the inputs of a matrix in blocks are quantized on the fly,
block by block along the columns. A model in torch that holds the dequantized weights does not do
that; with these hooks it does, and computes what llama.cpp computes.

Source: ggml-cpu (vec_dot_type of each type; quantize_row_q8_0, quantize_row_q8_K) of llama.cpp of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError, SchemeError
from labkit.formats.gguf.names import naming_of
from labkit.formats.gguf.reader import GgufFile

_Q8_0 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
_Q8_K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def rounded_input(x: Tensor, type_name: str) -> Tensor:
    """The inputs as llama.cpp's CPU kernel for weights of `type_name` sees them.

    x: float32 [..., columns]. Blocks of 32: 8-bit codes of one float16 scale, the largest magnitude
    over 127. Blocks of 256: a float32 scale, whose sign is that of the value with the largest
    magnitude. F16 and BF16: cast; F32: as they are.

    Raises SchemeError for a type without a kernel.
    """
    if type_name == "F32":
        return x
    if type_name in ("F16", "BF16"):
        return x.to(torch.float16 if type_name == "F16" else torch.bfloat16).float()
    if type_name in _Q8_0:
        blocks = x.unflatten(-1, (-1, 32))
        largest = blocks.abs().amax(-1, keepdim=True)
        scale = (largest / 127.0).half().float()
        inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
        return ((blocks * inverse).round() * scale).flatten(-2)
    if type_name in _Q8_K:
        blocks = x.unflatten(-1, (-1, 256))
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        inverse = torch.where(extreme != 0, -127.0 / extreme, 0.0)
        scale = torch.where(extreme != 0, 1.0 / inverse, 0.0)
        return ((blocks * inverse).round().clamp(max=127) * scale).flatten(-2)
    raise SchemeError(f"no kernel for weights in {type_name!r}")


@contextmanager
def llama_cpp_inputs(model: nn.Module, path: Path | str) -> Iterator[nn.Module]:
    """Inside, every linear of `model` sees its inputs as llama.cpp would with the file at `path`.

    The head of a tied model takes the type of the embedding. Raises ModelError when the file is
    another model's, FormatError for one that cannot be read.
    """
    naming = naming_of(model.config.model_type, str(path))
    with GgufFile(path) as file:
        types = {name: info.type_name for name, info in file.tensors.items()}
    head = model.get_output_embeddings()
    handles = []
    try:
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
                continue
            theirs = naming.to_gguf(f"{name}.weight")
            if module is head and theirs not in types:
                theirs = "token_embd.weight"
            if theirs not in types:
                raise ModelError(f"no tensor {theirs}", where=str(path))
            hook = partial(_rounding, types[theirs])
            handles.append(module.register_forward_pre_hook(hook))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _rounding(type_name: str, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (rounded_input(args[0], type_name), *args[1:])
