"""A Llama of given sizes with random weights, in each format that labkit writes.

Memory depends on sizes alone, so a layer is drawn once for each shape and stands in every block.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labkit.bench import random_gguf
from labkit.bench.random_gguf import LlamaShape
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.quantized import Quantized
from labkit.core.scheme import QuantScheme
from labkit.formats import awq, bitsandbytes, compressed_tensors, gptq
from labkit.formats.checkpoint import Checkpoint, write_folder
from labkit.formats.inputs import InputQuantization
from labkit.quantize import nf4, rtn

Make = Callable[[torch.Tensor], Quantized]
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _integers(bits: int, symmetric: bool, group: int | None) -> Make:
    kind = "group" if group else "channel"
    scheme = QuantScheme(bits, symmetric, kind, group, narrow_range=not symmetric)
    return lambda weight: rtn.quantize(weight, scheme)


def _folder(module: Any, make: Make, inputs: InputQuantization | None = None, **settings: Any):
    def write(path: Path, shape: LlamaShape) -> None:
        names = layers_of(shape)
        drawn = {size: make(_weight(size)) for size in set(names.values())}
        layers = {name: drawn[size] for name, size in names.items()}
        rounds = dict.fromkeys(layers, inputs) if inputs else {}
        checkpoint = Checkpoint(config_of(shape), _others(shape), layers, inputs=rounds)
        module.save(checkpoint, path, **settings)

    return write


def _llm_int8(path: Path, shape: LlamaShape) -> None:
    """As transformers writes it: codes and the largest magnitude of each row."""
    tensors = _others(shape)
    for name, (rows, columns) in layers_of(shape).items():
        codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        tensors |= {f"{name}.weight": codes, f"{name}.SCB": torch.full((rows,), 0.1)}
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    write_folder(path, Checkpoint(config_of(shape), tensors, {}), [], settings)


def _gguf(type_name: str):
    def write(path: Path, shape: LlamaShape) -> None:
        random_gguf.write(path, shape, type_name)

    return write


# What is written, and by what; GGUF quantizes embedding and head too.
WRITERS: dict[str, Callable[[Path, LlamaShape], None]] = {
    "GPTQ int4 group 128": _folder(gptq, _integers(4, True, 128)),
    "GPTQ int3 group 128": _folder(gptq, _integers(3, True, 128)),
    "AWQ int4 group 128": _folder(awq, _integers(4, False, 128)),
    "compressed-tensors int4 group 128": _folder(compressed_tensors, _integers(4, True, 128)),
    "compressed-tensors W8A8": _folder(
        compressed_tensors, _integers(8, True, None), InputQuantization("int")
    ),
    "compressed-tensors FP8": _folder(
        compressed_tensors, Float8Tensor.quantize, InputQuantization("float")
    ),
    "bitsandbytes NF4, nested": _folder(
        bitsandbytes, lambda weight: nf4.quantize(weight, double_quantization=True)
    ),
    "bitsandbytes int8": _llm_int8,
    "GGUF Q4_0": _gguf("Q4_0"),
    "GGUF Q4_K": _gguf("Q4_K"),
    "GGUF Q8_0": _gguf("Q8_0"),
}


def place(folder: Path, name: str) -> Path:
    """Where `WRITERS[name]` is to write: a file, or a folder."""
    return folder / ("model.gguf" if name.startswith("GGUF") else "model")


def file_bytes(path: Path) -> int:
    """Bytes of the weights on the disk."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _weight(size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*size, generator=generator) / size[1] ** 0.5


def layers_of(shape: LlamaShape) -> dict[str, tuple[int, int]]:
    """The linear layers of the blocks, and their shapes."""
    found = {}
    for name, size in shape.matrices():
        parts = name.split(".")
        if parts[0] == "blk":
            found[f"model.layers.{parts[1]}.{_MODULES[parts[2]]}"] = size
    return found


def others_of(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """What is not quantized, and its shapes: embedding and head, norms."""
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    norms = ["model.norm.weight"]
    for layer in range(shape.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            norms.append(f"model.layers.{layer}.{norm}.weight")
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(tables, (shape.vocabulary, shape.hidden))
    return sizes | dict.fromkeys(norms, (shape.hidden,))


def _others(shape: LlamaShape) -> dict[str, torch.Tensor]:
    """The same as tensors in float16."""
    table = _weight((shape.vocabulary, shape.hidden)).to(torch.float16)
    ones = torch.ones(shape.hidden, dtype=torch.float16)
    sizes = others_of(shape).items()
    return {name: ones if len(size) == 1 else table.clone() for name, size in sizes}


def config_of(shape: LlamaShape) -> dict[str, object]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
